//! GPT-2. Its matrices are `[in, out]` in Hugging Face folders and `[out, in]` in GGUF files.

use serde_json::{Map, Value as Json};

use super::{Family, Keys, Settings, model_type, object};
use crate::Result;
use crate::io::gguf::names::Kind::Transposed;
use crate::io::gguf::names::{Layout, rule, same};

pub(super) const FAMILY: Family = Family {
    arch: "gpt2",
    title: "GPT-2",
    marker: None,
    writes: |config| model_type(config) == Some("gpt2"),
    layout: Layout {
        outer: &[
            same("token_embd", "transformer.wte"),
            same("position_embd", "transformer.wpe"),
            same("output_norm", "transformer.ln_f"),
            same("output", "lm_head"),
        ],
        block_prefix: "transformer.h.",
        block: &[
            same("attn_norm", "ln_1"),
            rule("attn_qkv", "attn.c_attn", Transposed),
            rule("attn_output", "attn.c_proj", Transposed),
            same("ffn_norm", "ln_2"),
            rule("ffn_up", "mlp.c_fc", Transposed),
            rule("ffn_down", "mlp.c_proj", Transposed),
        ],
    },
    left_out: &[],
    config,
    metadata,
};

fn config(file: &Settings<'_>) -> Result<Map<String, Json>> {
    Ok(object([
        ("model_type", "gpt2".into()),
        ("vocab_size", file.vocab_size()?.into()),
        ("n_positions", file.need_integer("context_length")?.into()),
        ("n_embd", file.need_integer("embedding_length")?.into()),
        ("n_layer", file.need_integer("block_count")?.into()),
        ("n_head", file.need_integer("attention.head_count")?.into()),
        ("n_inner", file.need_integer("feed_forward_length")?.into()),
        ("activation_function", "gelu_new".into()),
        ("layer_norm_epsilon", file.need_float("attention.layer_norm_epsilon")?.into()),
        ("tie_word_embeddings", (!file.has_tensor("output.weight")).into()),
    ]))
}

fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    keys.require("activation_function", &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])?;
    keys.require_switch("scale_attn_weights", true)?;
    keys.require_switch("scale_attn_by_inverse_layer_idx", false)?;
    keys.copy_integers(&[
        ("block_count", "n_layer"),
        ("context_length", "n_positions"),
        ("embedding_length", "n_embd"),
        ("attention.head_count", "n_head"),
    ])?;
    let width = keys.need_integer("n_embd")?;
    let inner = keys.integer("n_inner")?.unwrap_or(width.saturating_mul(4));
    keys.set("feed_forward_length", inner);
    keys.copy_float("attention.layer_norm_epsilon", "layer_norm_epsilon")
}
