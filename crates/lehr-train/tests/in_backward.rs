//! Updating each parameter as soon as its gradient is complete changes no bit of a run, and needs
//! no memory for the whole gradient.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{gpt2, llama, recipe, run_in_memory, weights};
use lehr_tensor::arena;
use lehr_train::recipe::{ModelConfig, ObjectiveKind};

/// The bits of all weights, by name.
type Weights = Vec<(String, Vec<u32>)>;

/// What a few steps gave.
struct Trained {
    losses: Vec<f64>,
    weights: Weights,
    /// Memory in use at the worst moment beyond that before.
    peak_bytes: usize,
    /// Size of the whole gradient.
    gradient_bytes: usize,
}

fn trained(model: ModelConfig, objective: ObjectiveKind, in_backward: bool) -> Trained {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    recipe.train.steps = 5;
    // Few tokens, so that the gradient is the most of what backward needs.
    (recipe.train.batch_size, recipe.train.seq_len) = (1, 8);
    (recipe.optimizer.clip_norm, recipe.optimizer.in_backward) = (0.0, in_backward);
    arena::reset_peak();
    let before = arena::stats().used_bytes;
    let (task, observer) = run_in_memory(&recipe);
    Trained {
        losses: observer.losses(),
        weights: weights(&task),
        peak_bytes: arena::stats().used_peak_bytes - before,
        gradient_bytes: 4 * task.objective.model().params().n_values(),
    }
}

#[test]
fn the_same_bits_with_less_memory() {
    let mut untied = llama(96);
    let ModelConfig::Llama { tie_embeddings, .. } = &mut untied else { panic!("a Llama") };
    *tie_embeddings = false;
    let models = [gpt2(96), llama(96), untied];
    for model in models {
        for objective in [ObjectiveKind::NextToken, ObjectiveKind::CLASSIFY] {
            let after = trained(model.clone(), objective, false);
            let inside = trained(model.clone(), objective, true);
            assert_eq!(after.losses, inside.losses, "{model:?}");
            assert_eq!(after.weights, inside.weights, "{model:?}");
            // At its worst moment a step after backward holds the whole gradient, and a step inside
            // of it the activations, which take less here.
            let (saved, gradient) =
                (after.peak_bytes.saturating_sub(inside.peak_bytes), after.gradient_bytes);
            assert!(saved >= gradient / 4, "{saved} bytes less for a gradient of {gradient}");
        }
    }
}
