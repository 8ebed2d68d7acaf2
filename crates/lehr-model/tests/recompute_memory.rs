//! Memory saved by recomputing activations. Alone in its process, whose arena it measures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_model::{ActivationCheckpointing, Config, LlamaConfig, Model, Tokens};
use lehr_tensor::{Tensor, arena};

/// Peak bytes of a step beyond what is in use before it.
fn peak(checkpointing: ActivationCheckpointing) -> usize {
    let config = Config::Llama(LlamaConfig {
        vocab_size: 64,
        hidden_size: 64,
        intermediate_size: 192,
        num_hidden_layers: 12,
        num_attention_heads: 4,
        max_position_embeddings: 256,
        ..LlamaConfig::default()
    });
    let mut model = Model::new(config, 3).unwrap();
    model.set_activation_checkpointing(checkpointing);
    let ids: Vec<i32> = (0..512).map(|i| i * 7 % 64).collect();
    let tokens = Tokens::new(&ids, 2, 0).unwrap();
    let targets = Tensor::from_ids(&ids, [2, 256]).unwrap();
    let before = arena::stats().used_bytes;
    arena::reset_peak();
    model.loss(&tokens, &targets, 512.0).unwrap().backward().unwrap();
    arena::stats().used_peak_bytes - before
}

#[test]
fn recomputing_needs_a_small_part_of_the_memory() {
    let [kept, again] =
        [ActivationCheckpointing::None, ActivationCheckpointing::Recompute].map(peak);
    assert!(again < kept / 3, "{again} bytes, {kept} when all activations are kept");
}
