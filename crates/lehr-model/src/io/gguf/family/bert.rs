//! BERT encoders. Files cannot store the masked-language-model head or the pooler.

use serde_json::{Map, Value as Json};

use super::{Family, Keys, Settings, model_type, object};
use crate::Result;
use crate::io::gguf::names::{Layout, same};

pub(super) const FAMILY: Family = Family {
    arch: "bert",
    title: "BERT",
    marker: None,
    writes: |config| model_type(config) == Some("bert"),
    layout: Layout {
        outer: &[
            same("token_embd", "bert.embeddings.word_embeddings"),
            same("position_embd", "bert.embeddings.position_embeddings"),
            same("token_types", "bert.embeddings.token_type_embeddings"),
            same("token_embd_norm", "bert.embeddings.LayerNorm"),
        ],
        block_prefix: "bert.encoder.layer.",
        block: &[
            same("attn_q", "attention.self.query"),
            same("attn_k", "attention.self.key"),
            same("attn_v", "attention.self.value"),
            same("attn_output", "attention.output.dense"),
            same("attn_output_norm", "attention.output.LayerNorm"),
            same("ffn_up", "intermediate.dense"),
            same("ffn_down", "output.dense"),
            same("layer_output_norm", "output.LayerNorm"),
        ],
    },
    left_out: &["cls.", "bert.pooler."],
    config,
    metadata,
};

fn config(file: &Settings<'_>) -> Result<Map<String, Json>> {
    Ok(object([
        ("model_type", "bert".into()),
        ("architectures", vec!["BertModel"].into()),
        ("vocab_size", file.vocab_size()?.into()),
        ("hidden_size", file.need_integer("embedding_length")?.into()),
        ("intermediate_size", file.need_integer("feed_forward_length")?.into()),
        ("num_hidden_layers", file.need_integer("block_count")?.into()),
        ("num_attention_heads", file.need_integer("attention.head_count")?.into()),
        ("max_position_embeddings", file.n_rows("position_embd.weight")?.into()),
        ("type_vocab_size", file.n_rows("token_types.weight")?.into()),
        ("layer_norm_eps", file.need_float("attention.layer_norm_epsilon")?.into()),
        ("hidden_act", "gelu".into()),
    ]))
}

fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    keys.require("hidden_act", &["gelu"])?;
    keys.copy_integers(&[
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
    ])?;
    keys.copy_float("attention.layer_norm_epsilon", "layer_norm_eps")?;
    keys.set("attention.causal", false);
    let types = keys.integer("type_vocab_size")?.unwrap_or(2);
    keys.metadata.set("tokenizer.ggml.token_type_count", types);
    Ok(())
}
