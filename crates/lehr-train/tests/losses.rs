//! The losses of short runs, kept in `losses/`: a change that moves them is a change of results.
//!
//! If they are meant to move, `LEHR_BLESS=1 cargo test --release -p lehr-train --test losses`
//! writes them anew. That run fails by design; look at the difference, then run without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use common::{gpt2, llama, recipe, run_in_memory};
use lehr_tensor::{available_isas, set_isa};
use lehr_train::recipe::{ModelConfig, ObjectiveKind, ScheduleConfig};

const STEPS: u64 = 30;
/// Instruction sets round differently; over 30 steps that grows to less than this.
const TOLERANCE: f64 = 1e-4;

/// The instruction set is that of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn losses(model: ModelConfig, objective: ObjectiveKind) -> Vec<f64> {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    recipe.train.steps = STEPS;
    recipe.schedule = ScheduleConfig::Cosine { warmup_steps: 5, min_ratio: 0.1 };
    run_in_memory(&recipe).1.losses()
}

fn check(name: &str, model: &ModelConfig, objective: ObjectiveKind) {
    // Writing anew ends in a panic for every name, and so does a difference: neither is to hide
    // the others.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/losses/{name}.txt"));
    if std::env::var_os("LEHR_BLESS").is_some() {
        let mut text = String::new();
        for loss in losses(model.clone(), objective) {
            writeln!(text, "{loss:.7}").unwrap();
        }
        std::fs::write(&path, text).unwrap();
        panic!("wrote {}; look at what changed and run without LEHR_BLESS", path.display());
    }
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
    let want: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(want.len() as u64, STEPS, "{}", path.display());
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&want[25..]) < 0.9 * mean(&want[..5]), "{}: nothing is learnt", path.display());
    let best = lehr_tensor::isa();
    for isa in available_isas() {
        set_isa(isa).unwrap();
        let found = losses(model.clone(), objective);
        for (step, (found, want)) in found.iter().zip(&want).enumerate() {
            let error = (found / want - 1.0).abs();
            assert!(
                error <= TOLERANCE,
                "{name} with {isa}: step {} has the loss {found:.7}, expected {want:.7} of {}",
                step + 1,
                path.display()
            );
        }
    }
    set_isa(best).unwrap();
}

#[test]
fn gpt2_learns_the_next_token_with_the_stored_losses() {
    check("gpt2_next_token", &gpt2(32), ObjectiveKind::NextToken);
}

#[test]
fn gpt2_learns_to_answer_with_the_stored_losses() {
    check("gpt2_chat", &gpt2(32), ObjectiveKind::Chat);
}

#[test]
fn gpt2_learns_labels_with_the_stored_losses() {
    check("gpt2_classify", &gpt2(32), ObjectiveKind::CLASSIFY);
}

#[test]
fn llama_learns_the_next_token_with_the_stored_losses() {
    check("llama_next_token", &llama(32), ObjectiveKind::NextToken);
}

#[test]
fn llama_learns_to_answer_with_the_stored_losses() {
    check("llama_chat", &llama(32), ObjectiveKind::Chat);
}

#[test]
fn llama_learns_labels_with_the_stored_losses() {
    check("llama_classify", &llama(32), ObjectiveKind::CLASSIFY);
}
