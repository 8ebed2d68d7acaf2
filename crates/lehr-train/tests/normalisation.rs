//! A step's gradient is that of its labels, however they are cut into micro-batches and shared
//! among threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Mutex;

use common::{gpt2, llama, prepared, recipe, run_in_memory, weights};
use lehr_tensor::threads;
use lehr_train::recipe::{ModelConfig, ObjectiveKind, TrainConfig};
use lehr_train::{Recipe, Task};

/// The number of threads is that of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

const OBJECTIVES: [ObjectiveKind; 4] =
    [ObjectiveKind::NextToken, ObjectiveKind::Chat, ObjectiveKind::CLASSIFY, ObjectiveKind::Tag];

fn with_micro_batches(recipe: &Recipe, batch_size: usize, grad_accumulation: u64) -> Recipe {
    let train = TrainConfig { batch_size, grad_accumulation, ..recipe.train.clone() };
    Recipe { train, ..recipe.clone() }
}

type Named = Vec<(String, Vec<f32>)>;

/// Loss, gradients and the number of labels of each micro-batch of step `step`, as the loop
/// computes them.
fn gradients(recipe: &Recipe, step: u64) -> (f64, Named, Vec<usize>) {
    let task = prepared(recipe);
    let n = recipe.train.grad_accumulation;
    let batches: Vec<_> = (0..n).map(|i| task.train.batch(step * n + i).unwrap()).collect();
    let n_targets: Vec<usize> = batches.iter().map(|b| b.n_targets).collect();
    let normalizer = n_targets.iter().sum::<usize>() as f32;
    let mut loss = 0.0;
    for batch in &batches {
        let part = task.objective.loss(batch, normalizer).unwrap().value;
        loss += f64::from(part.item().unwrap());
        part.backward().unwrap();
    }
    (loss, named_gradients(&task), n_targets)
}

fn named_gradients(task: &Task) -> Named {
    let params = task.objective.model().params().params();
    let grad = |p: &lehr_tensor::Param| Some((p.name().to_owned(), p.grad()?.to_vec()));
    params.iter().filter_map(grad).collect()
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn gradients_do_not_depend_on_micro_batches() {
    let _alone = ALONE.lock().unwrap();
    for (model, objective) in [gpt2(32), llama(32)]
        .into_iter()
        .flat_map(|m: ModelConfig| OBJECTIVES.map(|objective| (m.clone(), objective)))
    {
        let scratch = tempfile::tempdir().unwrap();
        let recipe = recipe(scratch.path(), model, objective);
        for step in [0, 3] {
            let whole = gradients(&with_micro_batches(&recipe, 8, 1), step);
            assert!(whole.1.len() > 15, "{objective:?}: too few gradients");
            for (rows, accumulation) in [(4, 2), (2, 4)] {
                let parts = gradients(&with_micro_batches(&recipe, rows, accumulation), step);
                assert_eq!(parts.2.iter().sum::<usize>(), whole.2[0], "{objective:?}: labels");
                if rows == 2 {
                    // With equal parts a mean of means would be right by luck.
                    assert!(
                        parts.2.iter().any(|n| *n != parts.2[0]),
                        "{objective:?}: {:?}",
                        parts.2
                    );
                }
                assert!((parts.0 / whole.0 - 1.0).abs() < 1e-6, "{} and {}", parts.0, whole.0);
                for ((name, part), (whole_name, whole)) in parts.1.iter().zip(&whole.1) {
                    assert_eq!(name, whole_name);
                    let error = distance(part, whole);
                    assert!(
                        error < 1e-5,
                        "{objective:?} {rows}x{accumulation} {name}: {error:.1e}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_run_does_not_depend_on_micro_batches() {
    let _alone = ALONE.lock().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), llama(32), ObjectiveKind::Chat);
    let (_, whole) = run_in_memory(&with_micro_batches(&recipe, 8, 1));
    assert_eq!(whole.steps.len(), 6);
    for (rows, accumulation) in [(4, 2), (2, 4), (1, 8)] {
        let (_, parts) = run_in_memory(&with_micro_batches(&recipe, rows, accumulation));
        for (part, whole) in parts.steps.iter().zip(&whole.steps) {
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-4;
            let text = format!("{rows}x{accumulation}, step {}: {part:?} {whole:?}", part.step);
            assert!(near(part.loss, whole.loss) && near(part.grad_norm, whole.grad_norm), "{text}");
            assert_eq!(part.tokens_seen, whole.tokens_seen, "{text}");
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_run() {
    let _alone = ALONE.lock().unwrap();
    let before = threads::n_threads();
    for (model, objective) in [
        (gpt2(64), ObjectiveKind::NextToken),
        (llama(64), ObjectiveKind::NextToken),
        (llama(64), ObjectiveKind::Chat),
        (gpt2(64), ObjectiveKind::CLASSIFY),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let recipe = with_micro_batches(&recipe(scratch.path(), model, objective), 8, 1);
        let run = |n_threads| {
            threads::set_n_threads(n_threads);
            let (task, watch) = run_in_memory(&recipe);
            let numbers = |m: &lehr_train::Metrics| (m.loss.to_bits(), m.grad_norm.to_bits());
            (watch.steps.iter().map(numbers).collect::<Vec<_>>(), weights(&task))
        };
        let one = run(1);
        for n_threads in [2, 3] {
            assert!(run(n_threads) == one, "{n_threads} threads change {objective:?}");
        }
    }
    threads::set_n_threads(before);
}
