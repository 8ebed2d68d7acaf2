//! ChatGLM2, ChatGLM3 and GLM-4. Both sides rotate adjacent pairs of heads.
//!
//! Files call all but the newest one chatglm. Files made from THUDM's own folders have one matrix
//! for q, k and v; those made from transformers' folders have three.

use serde_json::{Map, Value as Json};

use super::{Family, Keys, Settings, llama, model_type, object, rope};
use crate::io::gguf::names::{Layout, same};
use crate::{Error, Result};

pub(super) const CHATGLM2: Family = Family {
    arch: "chatglm",
    title: "ChatGLM2 and 3",
    marker: Some("blk.0.attn_qkv.weight"),
    // ChatGLM-6B has the same model type, but GGUF has no architecture for it.
    writes: |config| {
        model_type(config) == Some("chatglm") && config.get("padded_vocab_size").is_some()
    },
    layout: Layout {
        outer: &[
            same("token_embd", "transformer.embedding.word_embeddings"),
            same("output_norm", "transformer.encoder.final_layernorm"),
            same("output", "transformer.output_layer"),
        ],
        block_prefix: "transformer.encoder.layers.",
        block: &[
            same("attn_norm", "input_layernorm"),
            same("attn_qkv", "self_attention.query_key_value"),
            same("attn_output", "self_attention.dense"),
            same("ffn_norm", "post_attention_layernorm"),
            same("ffn_up", "mlp.dense_h_to_4h"),
            same("ffn_down", "mlp.dense_4h_to_h"),
        ],
    },
    left_out: &[],
    config: chatglm2_config,
    metadata: chatglm2_metadata,
};

pub(super) const GLM: Family = Family {
    arch: "chatglm",
    title: "GLM-4 (glm)",
    marker: None,
    writes: |config| model_type(config) == Some("glm"),
    layout: Layout {
        outer: llama::OUTER,
        block_prefix: "model.layers.",
        block: &[
            same("attn_norm", "input_layernorm"),
            same("attn_q", "self_attn.q_proj"),
            same("attn_k", "self_attn.k_proj"),
            same("attn_v", "self_attn.v_proj"),
            same("attn_output", "self_attn.o_proj"),
            same("ffn_norm", "post_attention_layernorm"),
            same("ffn_up", "mlp.gate_up_proj"),
            same("ffn_down", "mlp.down_proj"),
        ],
    },
    left_out: &[],
    config: |file| glm_config(file, "glm"),
    metadata: glm_metadata,
};

pub(super) const GLM4: Family = Family {
    arch: "glm4",
    title: "GLM-4-0414 (glm4)",
    marker: None,
    writes: |config| model_type(config) == Some("glm4"),
    layout: Layout {
        outer: llama::OUTER,
        block_prefix: "model.layers.",
        block: &[
            same("attn_norm", "input_layernorm"),
            same("attn_q", "self_attn.q_proj"),
            same("attn_k", "self_attn.k_proj"),
            same("attn_v", "self_attn.v_proj"),
            same("attn_output", "self_attn.o_proj"),
            same("post_attention_norm", "post_self_attn_layernorm"),
            same("ffn_norm", "post_attention_layernorm"),
            same("ffn_up", "mlp.gate_up_proj"),
            same("ffn_down", "mlp.down_proj"),
            same("post_ffw_norm", "post_mlp_layernorm"),
        ],
    },
    left_out: &[],
    config: |file| glm_config(file, "glm4"),
    metadata: glm_metadata,
};

fn glm_config(file: &Settings<'_>, model_type: &str) -> Result<Map<String, Json>> {
    let mut config = llama::common(file, model_type)?;
    let (rotary_dim, mut rope) = rope::part_of_head(file)?;
    config.append(&mut rope);
    let factor = rotary_dim as f64 / file.head_dim()? as f64;
    config.insert("partial_rotary_factor".into(), factor.into());
    config.insert("attention_bias".into(), file.has_tensor("blk.0.attn_q.bias").into());
    Ok(config)
}

fn glm_metadata(keys: &mut Keys<'_>) -> Result<()> {
    llama::common_metadata(keys)?;
    let in_map = keys.config()["rope_parameters"]["partial_rotary_factor"].as_f64();
    let factor = in_map.or(keys.float("partial_rotary_factor")?).unwrap_or(0.5);
    let rotary_dim = f64::from(keys.head_dim()?) * factor;
    keys.set("rope.dimension_count", rotary_dim as u32);
    Ok(())
}

fn chatglm2_config(file: &Settings<'_>) -> Result<Map<String, Json>> {
    let (heads, head_dim) = (file.heads()?, file.head_dim()?);
    let (rotary_dim, rope) = rope::part_of_head(file)?;
    if rope.contains_key("rope_scaling") || 2 * rotary_dim != head_dim {
        let expected = format!("half of a head, {}, without scaling", head_dim / 2);
        return Err(Error::config(&file.key("rope.dimension_count"), rotary_dim, expected));
    }
    let theta = rope.get("rope_theta").and_then(Json::as_f64).unwrap_or(10_000.0);
    Ok(object([
        ("model_type", "chatglm".into()),
        ("padded_vocab_size", file.vocab_size()?.into()),
        ("hidden_size", file.need_integer("embedding_length")?.into()),
        ("ffn_hidden_size", file.need_integer("feed_forward_length")?.into()),
        ("num_layers", file.need_integer("block_count")?.into()),
        ("num_attention_heads", heads.query.into()),
        ("kv_channels", head_dim.into()),
        ("multi_query_attention", true.into()),
        ("multi_query_group_num", heads.key.into()),
        ("seq_length", file.need_integer("context_length")?.into()),
        ("layernorm_epsilon", file.need_float("attention.layer_norm_rms_epsilon")?.into()),
        ("rmsnorm", true.into()),
        ("add_bias_linear", file.has_tensor("blk.0.attn_output.bias").into()),
        ("add_qkv_bias", file.has_tensor("blk.0.attn_qkv.bias").into()),
        ("rope_ratio", (theta / 10_000.0).into()),
        ("tie_word_embeddings", (!file.has_tensor("output.weight")).into()),
    ]))
}

fn chatglm2_metadata(keys: &mut Keys<'_>) -> Result<()> {
    keys.require_switch("rmsnorm", true)?;
    keys.require_switch("post_layer_norm", true)?;
    keys.require_switch("apply_residual_connection_post_layernorm", false)?;
    keys.require_switch("add_bias_linear", false)?;
    keys.require_switch("multi_query_attention", true)?;
    keys.copy_integers(&[
        ("context_length", "seq_length"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "ffn_hidden_size"),
        ("block_count", "num_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "multi_query_group_num"),
        ("attention.key_length", "kv_channels"),
        ("attention.value_length", "kv_channels"),
    ])?;
    keys.copy_float("attention.layer_norm_rms_epsilon", "layernorm_epsilon")?;
    let (head_dim, ratio) = (keys.need_integer("kv_channels")?, keys.float("rope_ratio")?);
    keys.set("rope.dimension_count", head_dim / 2);
    keys.set("rope.freq_base", (10_000.0 * ratio.unwrap_or(1.0)) as f32);
    Ok(())
}
