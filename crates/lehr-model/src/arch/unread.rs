//! Keys of a `config.json` that its family does not read.
//!
//! Whether a key is read is not listed anywhere: it is tried. A key is read if a value that no key
//! can have makes the file invalid or its meaning another. So a family that begins to read a key
//! needs no change here.

use serde_json::{Value, json};

use super::Config;
use crate::{Error, Result, Spec};

/// Keys that change no result, with the reason.
const HARMLESS: &[(&str, &[&str])] = &[
    (
        "they name the model's class, its origin and the programs that wrote it",
        &[
            "architectures",
            "model_type",
            "transformers_version",
            "_name_or_path",
            "name_or_path",
            "tokenizer_class",
            "unsloth_version",
            "unsloth_fixed",
            "transformers.js_config",
            "is_llama_config",
            "_commit_hash",
            "n_ctx",
        ],
    ),
    (
        "they select how another program stores, computes or returns the same numbers",
        &[
            "torch_dtype",
            "dtype",
            "use_cache",
            "cache_implementation",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "return_dict_in_generate",
            "torchscript",
            "use_bfloat16",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "chunk_size_feed_forward",
            "gradient_checkpointing",
            "pretraining_tp",
            "reorder_and_upcast_attn",
            "attention_softmax_in_fp32",
            "fp32_residual_connection",
            "apply_query_key_layer_scaling",
            "bias_dropout_fusion",
            "remove_invalid_values",
        ],
    ),
    (
        "they act in training only, where recipes have their own settings",
        &[
            "initializer_range",
            "attention_dropout",
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "hidden_dropout",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "summary_first_dropout",
        ],
    ),
    (
        "they describe heads, which `lehr classify`, `lehr tag` and `lehr embed` read",
        &[
            "id2label",
            "label2id",
            "num_labels",
            "_num_labels",
            "problem_type",
            "classifier_pooling",
            "tagged_token",
            "finetuning_task",
            "task_specific_params",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
            "directionality",
        ],
    ),
    (
        "the tokenizer, the chat template and generation read them",
        &[
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "unk_token_id",
            "sep_token_id",
            "cls_token_id",
            "mask_token_id",
            "decoder_start_token_id",
        ],
    ),
    (
        "they belong to images, and lehr reads no images",
        &[
            "vision_config",
            "mm_tokens_per_image",
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
        ],
    ),
];

/// The values at which a key changes nothing.
#[derive(Clone, Copy)]
enum Neutral {
    /// Absent, or off: `null`, `false`, 0 or empty.
    Off,
    /// A factor of 1.
    One,
    /// Switched on.
    On,
    /// The width of a head.
    HeadDim,
    /// The number of query heads.
    Heads,
    /// Only `full_attention`.
    FullAttention,
}

/// Keys that change the computation in models of some family. A family that does not read one
/// accepts only its neutral value.
const COMPUTATION: &[(Neutral, &[&str])] = &[
    (
        Neutral::Off,
        &[
            "attention_bias",
            "qkv_bias",
            "mlp_bias",
            "use_bias",
            "bias",
            "lm_head_bias",
            "rope_scaling",
            "sliding_window",
            "use_sliding_window",
            "attention_window",
            "attention_chunk_size",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "clip_qkv",
            "use_qk_norm",
            "qk_norm",
            "qk_layernorm",
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "alibi",
            "use_alibi",
            "parallel_attn",
            "use_parallel_residual",
            "use_bidirectional_attention",
            "bidirectional",
            "is_encoder_decoder",
            "add_cross_attention",
            "pruned_heads",
            "no_rope_layers",
            "rope_interleaved",
            "use_mrope",
            "prefix_projection",
            "quantization_embeddings",
        ],
    ),
    (
        Neutral::One,
        &[
            "logit_scale",
            "logits_scaling",
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "scale_emb",
            "scale_depth",
            "partial_rotary_factor",
            "rotary_pct",
            "rotary_percent",
            "rope_ratio",
        ],
    ),
    (Neutral::On, &["is_causal", "original_rope", "tie_word_embeddings"]),
    (Neutral::HeadDim, &["query_pre_attn_scalar", "head_dim", "kv_channels"]),
    (Neutral::Heads, &["num_key_value_heads"]),
    (Neutral::FullAttention, &["layer_types"]),
];

impl Neutral {
    fn accepts(self, value: &Value, spec: &Spec) -> bool {
        let is = |n: usize| value.as_f64() == Some(n as f64);
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) => false,
        };
        match self {
            Self::Off => is_off,
            Self::One => value.is_null() || is(1),
            Self::On => matches!(value, Value::Null | Value::Bool(true)),
            Self::HeadDim => value.is_null() || is(spec.head_dim),
            Self::Heads => value.is_null() || is(spec.n_heads),
            Self::FullAttention => {
                is_off
                    || value
                        .as_array()
                        .is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"))
            }
        }
    }

    fn expected(self, spec: &Spec) -> String {
        let value = match self {
            Self::Off => "null or false".to_owned(),
            Self::One => "1".to_owned(),
            Self::On => "true".to_owned(),
            Self::HeadDim => format!("{}, the width of a head", spec.head_dim),
            Self::Heads => format!("{}, the number of heads", spec.n_heads),
            Self::FullAttention => "full_attention for every block".to_owned(),
        };
        format!("{value}: lehr does not read it in this family")
    }
}

/// Refuses a model whose weights are quantised in a way that lehr does not read.
pub(super) fn refuse_quantised(json: &Value) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        let text = json.get("text_config").and_then(|text| text.get(key));
        let Some(found) = json.get(key).or(text).filter(|value| !value.is_null()) else { continue };
        let method = ["quant_method", "quantization_method", "format"];
        let method = method.iter().find_map(|name| found.get(name)?.as_str());
        return Err(Error::Unsupported {
            found: format!(
                "config.json has {key} ({}): the weights are quantised",
                method.unwrap_or("of an unnamed method")
            ),
            expected: "weights in f32, f16 or bf16, or a GGUF file".to_owned(),
            hint: format!(
                "use the model's unquantised files or a GGUF file, and quantise with --weights or \
                 lehr convert; if the weights are plain floats again, remove {key}"
            ),
        });
    }
    Ok(())
}

/// Refuses keys that change the computation and that the family of `config` does not read.
pub(super) fn refuse(json: &Value, config: &Config) -> Result<()> {
    let text = json.get("text_config").is_some_and(Value::is_object);
    let spec = config.spec();
    for (neutral, keys) in COMPUTATION {
        for key in *keys {
            let paths = [vec![*key], vec!["text_config", *key]];
            for path in &paths[..1 + usize::from(text)] {
                let Some(value) = at(json, path) else { continue };
                if !neutral.accepts(value, &spec) && !is_read(json, path) {
                    let (key, value) = (path.join("."), brief(value));
                    return Err(Error::config(&key, value, neutral.expected(&spec)));
                }
            }
        }
    }
    Ok(())
}

/// Lists the keys that are neither read nor known to be harmless, with their values.
pub(super) fn unread(json: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(json, json, &mut Vec::new(), &mut found);
    found
}

fn collect<'a>(json: &'a Value, map: &'a Value, path: &mut Vec<&'a str>, found: &mut Vec<String>) {
    for (key, value) in map.as_object().into_iter().flatten() {
        path.push(key);
        // Null says nothing.
        if !value.is_null() && !is_harmless(json, path) {
            match is_read(json, path) {
                true => collect(json, value, path, found),
                false if is_neutral(json, key, value) => {}
                false => found.push(format!("`{}` = {}", path.join("."), brief(value))),
            }
        }
        path.pop();
    }
}

fn is_neutral(json: &Value, key: &str, value: &Value) -> bool {
    let spec = Config::parse(json).map(|config| config.spec());
    let neutral = COMPUTATION.iter().find(|(_, keys)| keys.contains(&key));
    neutral.zip(spec.ok()).is_some_and(|((neutral, _), spec)| neutral.accepts(value, &spec))
}

fn is_harmless(json: &Value, path: &[&str]) -> bool {
    let [.., key] = path else { return false };
    let in_config = path.len() == 1 || path == ["text_config", *key];
    // The published ChatGLM models name the code that lehr has written anew.
    let own_code = *key == "auto_map" && json.get("model_type").is_some_and(|t| t == "chatglm");
    // An older name of `rope_type`, which may stand beside it.
    let old_name = matches!(path, ["rope_scaling", "type"]);
    old_name || in_config && (own_code || HARMLESS.iter().any(|(_, keys)| keys.contains(key)))
}

/// A value that no key can have.
fn impossible() -> Value {
    json!([["\u{1}"]])
}

/// Returns whether the family of this file reads the key at `path`.
fn is_read(json: &Value, path: &[&str]) -> bool {
    let [before @ .., key] = path else { return false };
    let changed = |value: Option<Value>| {
        let mut json = json.clone();
        let mut map = Some(&mut json);
        for part in before {
            map = map.and_then(|map| map.get_mut(part));
        }
        let map = map.and_then(Value::as_object_mut)?;
        match value {
            Some(value) => map.insert((*key).to_owned(), value),
            None => map.shift_remove(*key),
        };
        Some(Config::parse(&json))
    };
    let Some(Ok(config)) = changed(Some(impossible())) else { return true };
    // Rotary settings are kept as found, so they differ in any case; their numbers are checked.
    if before.iter().any(|part| part.starts_with("rope_")) {
        return false;
    }
    !matches!(changed(None), Some(Ok(without)) if without == config)
}

fn at<'a>(json: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(json, |value, key| value.get(key))
}

/// Returns the beginning of a value.
fn brief(value: &Value) -> String {
    /// Characters shown.
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
