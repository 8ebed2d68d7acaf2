//! A run that was interrupted after any step and continued is the undisturbed run, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Watch, checkpoint_bytes, gpt2, llama, recipe, run_watched};
use lehr_train::recipe::{ModelConfig, ObjectiveKind};
use lehr_train::{Recipe, read_metrics};

/// The losses the run wrote down, with their steps.
fn written_losses(recipe: &Recipe) -> Vec<(u64, u64)> {
    let metrics = read_metrics(&recipe.dir().join("metrics.jsonl")).unwrap();
    metrics.iter().map(|m| (m.step, m.loss.to_bits())).collect()
}

fn written_samples(recipe: &Recipe) -> String {
    std::fs::read_to_string(recipe.dir().join("samples.jsonl")).unwrap_or_default()
}

fn with_dir(recipe: &Recipe, name: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.run.dir = recipe.dir().with_file_name(name).display().to_string();
    recipe
}

fn check_every_step(model: ModelConfig, objective: ObjectiveKind) {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    recipe.train.grad_accumulation = 2;
    recipe.eval.every_steps = 2;
    if ![ObjectiveKind::CLASSIFY, ObjectiveKind::Tag].contains(&objective) {
        recipe.sample.prompts = vec!["After 7 days".to_owned()];
        recipe.sample.every_steps = 2;
    }
    let steps = recipe.train.steps;
    let whole = with_dir(&recipe, "whole");
    let (_, watch) = run_watched(&whole, Watch::default());
    assert_eq!(watch.steps.len() as u64, steps);
    assert_eq!(written_losses(&whole).len() as u64, steps);
    for k in 1..steps {
        let parts = with_dir(&recipe, &format!("stopped-{k}"));
        let (_, first) = run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
        assert_eq!(first.steps.len() as u64, k);
        let (_, second) = run_watched(&parts, Watch::default());
        assert_eq!(second.started, Some(k));
        assert!(second.skipped.is_empty(), "{:?}", second.skipped);
        assert_eq!(second.steps.len() as u64, steps - k);
        assert!(
            checkpoint_bytes(&parts, steps) == checkpoint_bytes(&whole, steps),
            "{objective:?}: weights or moments differ after a stop at step {k}"
        );
        assert_eq!(written_losses(&parts), written_losses(&whole), "stopped at step {k}");
        assert_eq!(written_samples(&parts), written_samples(&whole), "stopped at step {k}");
    }
}

#[test]
fn a_language_model_resumes_at_every_step() {
    check_every_step(llama(32), ObjectiveKind::NextToken);
}

#[test]
fn a_chat_model_resumes_at_every_step() {
    check_every_step(gpt2(32), ObjectiveKind::Chat);
}

#[test]
fn a_classifier_resumes_at_every_step() {
    check_every_step(llama(32), ObjectiveKind::CLASSIFY);
}

#[test]
fn a_model_that_tags_words_resumes_at_every_step() {
    check_every_step(gpt2(32), ObjectiveKind::Tag);
}

#[test]
fn a_finished_run_that_is_resumed_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(32), ObjectiveKind::NextToken);
    run_watched(&recipe, Watch::default());
    let (bytes, losses) = (checkpoint_bytes(&recipe, 6), written_losses(&recipe));
    let (_, again) = run_watched(&recipe, Watch::default());
    assert_eq!((again.started, again.steps.len()), (Some(6), 0));
    assert!(checkpoint_bytes(&recipe, 6) == bytes);
    assert_eq!(written_losses(&recipe), losses);
}

#[test]
fn lines_that_a_crash_cut_are_left_out_and_written_again() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    recipe.sample.prompts = vec!["玻璃".to_owned()];
    recipe.sample.every_steps = 1;
    let whole = with_dir(&recipe, "whole");
    run_watched(&whole, Watch::default());
    let parts = with_dir(&recipe, "parts");
    run_watched(&parts, Watch { stop_after: Some(3), ..Watch::default() });
    let cut = |name: &str, end: &[u8]| {
        let path = parts.dir().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(end);
        std::fs::write(&path, bytes).unwrap();
    };
    cut("metrics.jsonl", b"{\"step\":4,\"loss\":5.1");
    // Cut within a character of three bytes.
    cut("samples.jsonl", b"{\"step\":4,\"prompt\":\"\xe7\x8e");
    run_watched(&parts, Watch::default());
    assert_eq!(written_losses(&parts), written_losses(&whole));
    assert_eq!(written_samples(&parts), written_samples(&whole));
}

#[test]
fn a_run_that_was_moved_or_named_differently_is_still_that_run() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(32), ObjectiveKind::NextToken);
    run_watched(&recipe, Watch { stop_after: Some(2), ..Watch::default() });
    let moved = scratch.path().join("elsewhere");
    std::fs::rename(recipe.dir(), &moved).unwrap();
    // With the slash that shells add.
    let named = std::path::PathBuf::from(format!("{}/", moved.display()));
    let loaded = lehr_train::RunDir::load_recipe(&named).unwrap();
    let (_, watch) = run_watched(&loaded, Watch::default());
    assert_eq!(watch.started, Some(2));
    let mut other = loaded;
    other.train.steps += 1;
    let error = lehr_train::RunDir::open(&other).unwrap_err();
    assert!(error.to_string().contains("another recipe"), "{error}");
    assert!(error.hint().is_some());
}
