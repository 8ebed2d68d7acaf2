//! Qwen 2, 2.5 and 3. Heads have the same order as in Hugging Face folders.

use serde_json::{Map, Value as Json};

use super::{Family, Keys, Settings, llama, model_type, rope};
use crate::Result;
use crate::io::gguf::names::{Layout, same};

pub(super) const QWEN2: Family = Family {
    arch: "qwen2",
    title: "Qwen2",
    marker: None,
    writes: |config| model_type(config) == Some("qwen2"),
    layout: LAYOUT,
    left_out: &[],
    config: |file| config(file, "qwen2"),
    metadata,
};

pub(super) const QWEN3: Family = Family {
    arch: "qwen3",
    title: "Qwen3",
    marker: None,
    writes: |config| model_type(config) == Some("qwen3"),
    layout: LAYOUT,
    left_out: &[],
    config: |file| {
        let mut config = config(file, "qwen3")?;
        config.insert("attention_bias".into(), file.has_tensor("blk.0.attn_q.bias").into());
        Ok(config)
    },
    metadata,
};

/// Qwen 2 has biases, Qwen 3 has norms of heads.
const LAYOUT: Layout = Layout {
    outer: llama::OUTER,
    block_prefix: "model.layers.",
    block: &[
        same("attn_norm", "input_layernorm"),
        same("attn_q", "self_attn.q_proj"),
        same("attn_k", "self_attn.k_proj"),
        same("attn_v", "self_attn.v_proj"),
        same("attn_q_norm", "self_attn.q_norm"),
        same("attn_k_norm", "self_attn.k_norm"),
        same("attn_output", "self_attn.o_proj"),
        same("ffn_norm", "post_attention_layernorm"),
        same("ffn_gate", "mlp.gate_proj"),
        same("ffn_up", "mlp.up_proj"),
        same("ffn_down", "mlp.down_proj"),
    ],
};

fn config(file: &Settings<'_>, model_type: &str) -> Result<Map<String, Json>> {
    let mut config = llama::common(file, model_type)?;
    config.insert("use_sliding_window".into(), false.into());
    config.append(&mut rope::whole_head(file)?);
    Ok(config)
}

fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    // Files cannot store windows in only some of the blocks.
    keys.require_switch("use_sliding_window", false)?;
    llama::common_metadata(keys)
}
