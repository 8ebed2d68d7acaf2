//! Training on the CPU with products in bf16: near f32, and with the same guarantees.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Watch, checkpoint_bytes, gpt2, llama, recipe, run_watched};
use lehr_model::DTypeChoice;
use lehr_tensor::{threads, tile16};
use lehr_train::Recipe;
use lehr_train::recipe::{ModelConfig, ObjectiveKind};

/// Steps whose losses are averaged before they are compared.
const WINDOW: usize = 20;

fn in_dtype(recipe: &Recipe, dtype: DTypeChoice, name: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.run.dtype = dtype;
    recipe.run.dir = recipe.dir().with_file_name(name).display().to_string();
    recipe
}

fn losses(recipe: &Recipe) -> Vec<f64> {
    let (_, watch) = run_watched(recipe, Watch::default());
    watch.steps.iter().map(|step| step.loss).collect()
}

fn check_losses(model: ModelConfig, objective: ObjectiveKind) {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    recipe.train.steps = 200;
    recipe.checkpoint.every_steps = 0;
    let want = losses(&in_dtype(&recipe, DTypeChoice::F32, "f32"));
    let got = losses(&in_dtype(&recipe, DTypeChoice::Bf16, "bf16"));
    assert_eq!(want.len(), 200);
    assert!(got != want, "the products are in bf16");
    let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
    for (i, (got, want)) in got.chunks(WINDOW).zip(want.chunks(WINDOW)).enumerate() {
        let (got, want) = (mean(got), mean(want));
        // A loss below a tenth is of conversations learnt by heart.
        let error = (got - want).abs() / want.max(0.1);
        assert!(error < 0.01, "{objective:?}, steps from {}: {got} {want}", i * WINDOW);
    }
}

#[test]
fn losses_of_200_steps_are_within_a_hundredth_of_those_in_f32() {
    check_losses(llama(32), ObjectiveKind::NextToken);
    check_losses(gpt2(32), ObjectiveKind::NextToken);
    check_losses(gpt2(32), ObjectiveKind::Chat);
}

#[test]
fn interruptions_threads_and_accumulation_keep_every_bit() {
    let before = tile16::chosen();
    for isa in tile16::available() {
        tile16::set(isa).unwrap();
        for objective in [ObjectiveKind::NextToken, ObjectiveKind::CLASSIFY] {
            let scratch = tempfile::tempdir().unwrap();
            let mut recipe = recipe(scratch.path(), llama(32), objective);
            recipe.train.grad_accumulation = 2;
            let bf16 = |name: &str| in_dtype(&recipe, DTypeChoice::Bf16, name);
            let steps = recipe.train.steps;
            let whole = bf16("whole");
            run_watched(&whole, Watch::default());
            for (k, n_threads) in [(1, 1), (4, 3)] {
                let parts = bf16(&format!("stopped-{k}"));
                run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
                threads::set_n_threads(n_threads);
                run_watched(&parts, Watch::default());
                threads::set_n_threads(2);
                assert!(
                    checkpoint_bytes(&parts, steps) == checkpoint_bytes(&whole, steps),
                    "{objective:?} ({isa}): a stop at step {k}, then {n_threads} threads"
                );
            }
        }
    }
    tile16::set(before).unwrap();
}
