//! Updating each parameter as soon as its gradient is complete changes no bit of a run, and needs
//! no memory for the whole gradient.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{gpt2, llama, recipe, run_in_memory, weights};
use lehr_tensor::arena;
use lehr_train::recipe::{ModelConfig, ObjectiveKind};

/// The bits of all weights, by name.
type Weights = Vec<(String, Vec<u32>)>;

/// Losses and weights of a few steps, and the memory in use at the worst moment beyond that before.
fn trained(model: ModelConfig, objective: ObjectiveKind, now: bool) -> (Vec<f64>, Weights, usize) {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    recipe.train.steps = 5;
    // Few tokens, so that the gradient is the most of what backward needs.
    (recipe.train.batch_size, recipe.train.seq_len) = (1, 32);
    (recipe.optimizer.clip_norm, recipe.optimizer.in_backward) = (0.0, now);
    arena::reset_peak();
    let before = arena::stats().used_bytes;
    let (task, observer) = run_in_memory(&recipe);
    (observer.losses(), weights(&task), arena::stats().used_peak_bytes - before)
}

#[test]
fn the_same_bits_with_less_memory() {
    let mut untied = llama(96);
    let ModelConfig::Llama { tie_embeddings, .. } = &mut untied else { panic!("a Llama") };
    *tie_embeddings = false;
    let models = [gpt2(96), llama(96), untied];
    for model in models {
        for objective in [ObjectiveKind::NextToken, ObjectiveKind::Classify] {
            let (losses, weights, peak) = trained(model.clone(), objective, false);
            let (losses_now, weights_now, peak_now) = trained(model.clone(), objective, true);
            assert_eq!(losses, losses_now, "{model:?}");
            assert_eq!(weights, weights_now, "{model:?}");
            assert!(peak_now < peak, "{peak_now} bytes are not less than {peak}");
        }
    }
}
