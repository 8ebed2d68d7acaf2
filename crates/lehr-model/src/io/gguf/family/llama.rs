//! Llama 2 and 3, and Mistral, which files also call llama.
//!
//! In files, the rows of each query and key head that are rotated together are adjacent. In Hugging
//! Face folders, the first halves of all pairs come first, then the second halves.

use serde_json::{Map, Value as Json};

use super::{Family, Keys, Settings, model_type, object, rope};
use crate::Result;
use crate::io::gguf::names::Kind::{KeyRows, QueryRows};
use crate::io::gguf::names::{Layout, Rule, rule, same};

pub(super) const FAMILY: Family = Family {
    arch: "llama",
    title: "Llama, Mistral",
    marker: None,
    writes: |config| matches!(model_type(config), Some("llama" | "mistral")),
    layout: Layout {
        outer: OUTER,
        block_prefix: "model.layers.",
        block: &[
            same("attn_norm", "input_layernorm"),
            rule("attn_q", "self_attn.q_proj", QueryRows),
            rule("attn_k", "self_attn.k_proj", KeyRows),
            same("attn_v", "self_attn.v_proj"),
            same("attn_output", "self_attn.o_proj"),
            same("ffn_norm", "post_attention_layernorm"),
            same("ffn_gate", "mlp.gate_proj"),
            same("ffn_up", "mlp.up_proj"),
            same("ffn_down", "mlp.down_proj"),
        ],
    },
    left_out: &[],
    config,
    metadata,
};

/// The tensors outside the blocks, shared by all descendants of Llama.
pub(super) const OUTER: &[Rule] = &[
    same("token_embd", "model.embed_tokens"),
    same("output_norm", "model.norm"),
    same("output", "lm_head"),
];

/// Keys in Mistral files of lehr that llama.cpp does not read.
const WINDOW: &str = "attention.sliding_window";

fn config(file: &Settings<'_>) -> Result<Map<String, Json>> {
    let window = file.integer(WINDOW)?.filter(|window| *window > 0);
    let mut config = common(file, if window.is_some() { "mistral" } else { "llama" })?;
    match window {
        Some(window) => {
            config.insert("sliding_window".into(), window.into());
        }
        None => {
            config.insert("attention_bias".into(), file.has_tensor("blk.0.attn_q.bias").into());
            config.insert("mlp_bias".into(), file.has_tensor("blk.0.ffn_up.bias").into());
        }
    }
    config.append(&mut rope::whole_head(file)?);
    Ok(config)
}

fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    common_metadata(keys)?;
    let vocab_size = keys.need_integer("vocab_size")?;
    keys.set("vocab_size", vocab_size);
    let head_dim = keys.head_dim()?;
    keys.set("rope.dimension_count", head_dim);
    if let Some(window) = keys.integer("sliding_window")? {
        keys.set(WINDOW, window);
    }
    Ok(())
}

/// Reads the settings with names shared by Llama and its descendants, except rotation.
pub(super) fn common(file: &Settings<'_>, model_type: &str) -> Result<Map<String, Json>> {
    file.refuse_experts()?;
    let heads = file.heads()?;
    Ok(object([
        ("model_type", model_type.into()),
        ("vocab_size", file.vocab_size()?.into()),
        ("hidden_size", file.need_integer("embedding_length")?.into()),
        ("intermediate_size", file.need_integer("feed_forward_length")?.into()),
        ("num_hidden_layers", file.need_integer("block_count")?.into()),
        ("num_attention_heads", heads.query.into()),
        ("num_key_value_heads", heads.key.into()),
        ("head_dim", file.head_dim()?.into()),
        ("max_position_embeddings", file.need_integer("context_length")?.into()),
        ("rms_norm_eps", file.need_float("attention.layer_norm_rms_epsilon")?.into()),
        ("hidden_act", "silu".into()),
        ("tie_word_embeddings", (!file.has_tensor("output.weight")).into()),
    ]))
}

/// Writes the metadata with names shared by Llama and its descendants.
pub(super) fn common_metadata(keys: &mut Keys<'_>) -> Result<()> {
    keys.require("hidden_act", &["silu", "swish"])?;
    keys.copy_integers(&[
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
    ])?;
    let heads = keys.need_integer("num_attention_heads")?;
    let kv_heads = keys.integer("num_key_value_heads")?.unwrap_or(heads);
    keys.set("attention.head_count_kv", kv_heads);
    rope::metadata(keys)?;
    keys.copy_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
    let head_dim = keys.head_dim()?;
    keys.set("attention.key_length", head_dim);
    keys.set("attention.value_length", head_dim);
    Ok(())
}
