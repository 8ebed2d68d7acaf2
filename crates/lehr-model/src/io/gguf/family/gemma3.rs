//! The text models of Gemma 3. Files store the scales of norms as `1 + weight`.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, Settings, llama, model_type, rope};
use crate::io::gguf::names::Kind::PlusOne;
use crate::io::gguf::names::{Layout, rule, same};
use crate::{Error, Result};

pub(super) const FAMILY: Family = Family {
    arch: "gemma3",
    title: "Gemma 3",
    marker: None,
    writes: |config| model_type(config) == Some("gemma3_text"),
    layout: Layout {
        outer: &[
            same("token_embd", "model.embed_tokens"),
            rule("output_norm", "model.norm", PlusOne),
            same("output", "lm_head"),
        ],
        block_prefix: "model.layers.",
        block: &[
            rule("attn_norm", "input_layernorm", PlusOne),
            same("attn_q", "self_attn.q_proj"),
            same("attn_k", "self_attn.k_proj"),
            same("attn_v", "self_attn.v_proj"),
            rule("attn_q_norm", "self_attn.q_norm", PlusOne),
            rule("attn_k_norm", "self_attn.k_norm", PlusOne),
            same("attn_output", "self_attn.o_proj"),
            rule("post_attention_norm", "post_attention_layernorm", PlusOne),
            rule("ffn_norm", "pre_feedforward_layernorm", PlusOne),
            same("ffn_gate", "mlp.gate_proj"),
            same("ffn_up", "mlp.up_proj"),
            same("ffn_down", "mlp.down_proj"),
            rule("post_ffw_norm", "post_feedforward_layernorm", PlusOne),
        ],
    },
    left_out: &[],
    config,
    metadata,
};

/// Period of the blocks without a window.
const PATTERN: u64 = 6;
/// Base of the frequencies in blocks with a window.
const LOCAL_BASE: f64 = 10_000.0;
/// Number of blocks of the 27B model, whose scores are scaled by another width than the head's.
const BLOCKS_27B: u64 = 62;

/// Returns the number whose square root divides the scores. Files cannot store it.
fn score_width(n_blocks: u64, width: u64, n_heads: u64, head_dim: u64) -> u64 {
    if n_blocks == BLOCKS_27B { width / n_heads.max(1) } else { head_dim }
}

fn config(file: &Settings<'_>) -> Result<Map<String, Json>> {
    let mut config = llama::common(file, "gemma3_text")?;
    config.remove("hidden_act");
    let n_blocks = file.need_integer("block_count")?;
    let (width, heads) = (file.need_integer("embedding_length")?, file.heads()?.query as u64);
    let window = file.integer("attention.sliding_window")?.filter(|window| *window > 0);
    let pattern = match window {
        Some(_) => file.integer("attention.sliding_window_pattern")?.unwrap_or(PATTERN),
        None => 1,
    };
    // Files omit rows of the table that have no token.
    config.append(&mut rope::whole_head(file)?);
    let local = file.float("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    for (key, value) in [
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("sliding_window", window.map_or(Json::Null, Json::from)),
        ("sliding_window_pattern", pattern.into()),
        ("rope_local_base_freq", local.into()),
        ("query_pre_attn_scalar", score_width(n_blocks, width, heads, file.head_dim()?).into()),
        ("final_logit_softcapping", file.float("final_logit_softcapping")?.into()),
        ("attn_logit_softcapping", Json::Null),
    ] {
        config.insert(key.to_owned(), value);
    }
    Ok(config)
}

fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    keys.require("hidden_activation", &["gelu_pytorch_tanh"])?;
    keys.require_switch("attention_bias", false)?;
    llama::common_metadata(keys)?;
    let n_blocks = keys.need_integer("num_hidden_layers")?;
    let (width, heads) =
        (keys.need_integer("hidden_size")?, keys.need_integer("num_attention_heads")?);
    let head_dim = keys.head_dim()?;
    let expected = score_width(n_blocks.into(), width.into(), heads.into(), head_dim.into());
    match keys.float("query_pre_attn_scalar")? {
        Some(found) if found != expected as f64 => {
            let expected = format!("{expected}, as gemma3 files of these sizes imply");
            return Err(Error::config("query_pre_attn_scalar", found, expected));
        }
        _ => {}
    }
    if let Some(cap) = keys.float("final_logit_softcapping")? {
        keys.set("final_logit_softcapping", cap as f32);
    }
    windows(keys, n_blocks)?;
    let config = keys.config();
    let of_windows = &config["rope_parameters"]["sliding_attention"];
    let local = match of_windows["rope_theta"].as_f64() {
        Some(theta) => theta,
        None => keys.float("rope_local_base_freq")?.unwrap_or(LOCAL_BASE),
    };
    keys.set("rope.freq_base_swa", local as f32);
    Ok(())
}

/// Returns the kinds of blocks, which must follow the pattern that files imply.
fn windows(keys: &mut Keys<'_>, n_blocks: u32) -> Result<()> {
    let config = keys.config();
    let pattern = keys.integer("sliding_window_pattern")?.unwrap_or(PATTERN as u32).max(1);
    let has_window = |block: u32| match config["layer_types"].get(block as usize) {
        Some(kind) => kind == "sliding_attention",
        None => !(block + 1).is_multiple_of(pattern),
    };
    let kinds: Vec<bool> = (0..n_blocks).map(has_window).collect();
    if !kinds.contains(&true) {
        return Ok(());
    }
    if let Some(block) =
        (0..n_blocks).find(|i| kinds[*i as usize] == u64::from(*i + 1).is_multiple_of(PATTERN))
    {
        let found = format!("{kinds:?} for a window or none, different at block {block}");
        let expected = "five blocks with a window, then one without, as gemma3 files imply";
        return Err(Error::config("layer_types", found, expected));
    }
    let window = keys.need_integer("sliding_window")?;
    keys.set("attention.sliding_window", window);
    Ok(())
}
