//! Keys of a GGUF file that nothing reads.

use super::family::Settings;
use super::metadata::Value;
use crate::{Error, Result};

/// Beginnings of keys that describe the model, its origin and the file, and change no result.
const HARMLESS: [&str; 4] = ["general.", "quantize.", "imatrix.", "split."];

/// Keys of an architecture that change no result here: the size of the vocabulary, which the
/// embedding has; the pooling, which `lehr embed` reads; notes about the conversion.
const HARMLESS_OF_ARCH: [&str; 4] =
    ["vocab_size", "pooling_type", "tensor_data_layout", "rope.scaling.finetuned"];

/// Keys of the tokenizer that `lehr_infer::gguf_tokenizer` and the chat template read.
const TOKENIZER: [&str; 24] = [
    "chat_template",
    "ggml.model",
    "ggml.pre",
    "ggml.tokens",
    "ggml.scores",
    "ggml.token_type",
    "ggml.merges",
    "ggml.add_bos_token",
    "ggml.add_eos_token",
    "ggml.add_sep_token",
    "ggml.add_space_prefix",
    "ggml.remove_extra_whitespaces",
    "ggml.precompiled_charsmap",
    "ggml.normalizer.lowercase",
    "ggml.normalizer.strip_accents",
    "ggml.bos_token_id",
    "ggml.eos_token_id",
    "ggml.eot_token_id",
    "ggml.eom_token_id",
    "ggml.unknown_token_id",
    "ggml.seperator_token_id",
    "ggml.padding_token_id",
    "ggml.cls_token_id",
    "ggml.mask_token_id",
];

/// Keys of the tokenizer that change no result: the number of token types (all texts have the
/// first); a copy of the Hugging Face file; the tokens of infilling. No command infills.
const HARMLESS_OF_TOKENIZER: [&str; 12] = [
    "ggml.token_type_count",
    "huggingface.json",
    "ggml.prefix_token_id",
    "ggml.suffix_token_id",
    "ggml.middle_token_id",
    "ggml.fim_pre_token_id",
    "ggml.fim_suf_token_id",
    "ggml.fim_mid_token_id",
    "ggml.fim_pad_token_id",
    "ggml.fim_rep_token_id",
    "ggml.fim_sep_token_id",
    "ggml.nl_token_id",
];

/// The values at which a key changes nothing.
enum Neutral {
    Off,
    One,
    On,
}

/// Keys of an architecture that change the computation in files of some family.
const COMPUTATION: &[(Neutral, &[&str])] = &[
    (
        Neutral::Off,
        &[
            "expert_count",
            "expert_used_count",
            "attention.sliding_window",
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "use_parallel_residual",
            "ssm.state_size",
            "nextn_predict_layers",
            "rope.scaling.yarn_log_multiplier",
        ],
    ),
    (
        Neutral::One,
        &[
            "logit_scale",
            "embedding_scale",
            "residual_scale",
            "attention.scale",
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_ext_factor",
        ],
    ),
    (Neutral::On, &["attention.causal"]),
];

impl Neutral {
    fn accepts(&self, value: &Value) -> bool {
        let number = value.float().or_else(|| value.integer().map(|n| n as f64));
        match self {
            Self::Off => number == Some(0.0) || *value == Value::Bool(false),
            Self::One => number == Some(1.0),
            Self::On => *value == Value::Bool(true),
        }
    }

    fn expected(&self) -> &'static str {
        match self {
            Self::Off => "0 or absent: lehr does not read it in this family",
            Self::One => "1 or absent: lehr does not read it in this family",
            Self::On => "true or absent: lehr does not read it in this family",
        }
    }
}

/// Refuses keys that change the computation, and names the rest, if they were not asked for.
///
/// # Errors
/// If such a key has another value than its neutral one.
pub(super) fn check(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut unread = Vec::new();
    for (key, value) in settings.header.metadata.entries() {
        let known = HARMLESS.iter().any(|start| key.starts_with(start));
        let of_tokenizer = key
            .strip_prefix("tokenizer.")
            .is_some_and(|name| TOKENIZER.contains(&name) || HARMLESS_OF_TOKENIZER.contains(&name));
        if known || of_tokenizer || settings.was_asked(key) {
            continue;
        }
        let name = key.strip_prefix(settings.arch).and_then(|name| name.strip_prefix('.'));
        if name.is_some_and(|name| HARMLESS_OF_ARCH.contains(&name)) {
            continue;
        }
        let neutral =
            COMPUTATION.iter().find(|(_, keys)| name.is_some_and(|name| keys.contains(&name)));
        match neutral {
            // The encoders' masks are theirs already.
            Some((Neutral::On, _)) if settings.arch == "bert" => {}
            Some((neutral, _)) if !neutral.accepts(value) => {
                return Err(Error::config(key, value.brief(), neutral.expected()));
            }
            Some(_) => {}
            None => unread.push(format!("`{key}` = {}", value.brief())),
        }
    }
    let list = unread.join(", ");
    let warning = format!("keys of the GGUF file that lehr does not read: {list}");
    Ok(if unread.is_empty() { Vec::new() } else { vec![warning] })
}
