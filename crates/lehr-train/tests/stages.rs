//! Runs whose steps change their size: the plan is followed, and a run that was interrupted in any
//! stage is the undisturbed run, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Watch, checkpoint_bytes, llama, recipe, run_in_memory, run_watched};
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_tensor::cuda;
use lehr_train::Recipe;
use lehr_train::recipe::{
    BatchLr, BatchStage, DecayShape, ObjectiveKind, ScheduleConfig, SeqStage, Shuffle,
};

/// Eight steps: 96 tokens in rows of 16, 96 and then 192 in rows of 24, 384 in rows of 48.
fn staged(dir: &Path) -> Recipe {
    let mut recipe = recipe(dir, llama(32), ObjectiveKind::NextToken);
    recipe.data.shuffle = Shuffle::Documents;
    let train = &mut recipe.train;
    (train.steps, train.batch_size, train.seq_len) = (8, 4, 48);
    train.batch_lr = BatchLr::Sqrt;
    let batch = [(0.5, 96), (0.25, 192), (0.25, 384)];
    train.batch_stages = batch.map(|(share, tokens)| BatchStage { share, tokens }).to_vec();
    let seq = [(0.25, 16), (0.5, 24), (0.25, 48)];
    train.seq_stages = seq.map(|(share, seq_len)| SeqStage { share, seq_len }).to_vec();
    recipe.schedule = ScheduleConfig::Wsd {
        warmup_steps: 1,
        decay_steps: 4,
        min_ratio: 0.1,
        decay_shape: DecayShape::OneMinusSqrt,
    };
    recipe
}

fn named(recipe: &Recipe, name: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.run.dir = recipe.dir().with_file_name(name).display().to_string();
    recipe
}

#[test]
fn steps_have_the_tokens_and_rates_of_their_stage() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = staged(scratch.path());
    let (_, watch) = run_in_memory(&recipe);
    let mut seen = 0;
    let tokens = [96, 96, 96, 96, 192, 192, 384, 384];
    for (metrics, tokens) in watch.steps.iter().zip(tokens) {
        seen += tokens;
        assert_eq!(metrics.tokens_seen, seen, "step {}", metrics.step);
    }
    let peak = recipe.optimizer.lr;
    let floor = |done: f32| 0.1 + 0.9 * (1.0 - done.sqrt());
    let want = [1.0, 1.0, 1.0, 1.0, floor(0.0), floor(0.25), floor(0.5), floor(0.75)];
    for (i, (metrics, share)) in watch.steps.iter().zip(want).enumerate() {
        let want = peak * share * (tokens[i] as f32 / 384.0).sqrt();
        assert!((metrics.lr / want - 1.0).abs() < 1e-5, "step {i}: {} {want}", metrics.lr);
    }
}

#[test]
fn a_run_resumes_exactly_in_every_stage() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = staged(scratch.path());
    let whole = named(&recipe, "whole");
    let (_, undisturbed) = run_watched(&whole, Watch::default());
    for k in 1..8 {
        let parts = named(&recipe, &format!("stopped-{k}"));
        run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
        let (_, rest) = run_watched(&parts, Watch::default());
        assert_eq!(rest.losses(), undisturbed.losses()[k as usize..], "stopped at step {k}");
        assert!(checkpoint_bytes(&parts, 8) == checkpoint_bytes(&whole, 8), "stopped at {k}");
    }
}

#[test]
fn a_gpu_records_steps_of_a_new_size_anew() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = staged(scratch.path());
    (recipe.run.device, recipe.run.dtype) = (DeviceChoice::Cuda(0), DTypeChoice::F32);
    let plain = run_in_memory(&recipe).1.losses();
    recipe.train.cuda_graph = true;
    assert_eq!(run_in_memory(&recipe).1.losses(), plain);
    (recipe.run.device, recipe.train.cuda_graph) = (DeviceChoice::Cpu, false);
    let cpu = run_in_memory(&recipe).1.losses();
    for (cpu, gpu) in cpu.iter().zip(plain) {
        assert!((cpu / gpu - 1.0).abs() < 2e-4, "{cpu} {gpu}");
    }
}

/// What a recipe with these settings is refused for.
fn refusal(recipe: &Recipe, sets: &[&str]) -> String {
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    recipe.with_overrides(&sets).unwrap_err().to_string()
}

#[test]
fn stages_that_cannot_be_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let staged = staged(scratch.path());
    let again = Recipe::parse(&staged.to_toml(), "test", &[]).unwrap();
    assert_eq!(again, staged);
    for (set, part) in [
        ("train.batch_stages=[{share=0.5,tokens=96}]", "shares above 0 whose sum is 1"),
        ("train.batch_stages=[{share=1.0,tokens=100}]", "tokens is 100, expected a multiple of 16"),
        ("train.batch_stages=[{share=1.0,tokens=0}]", "tokens is 0, expected at least 1"),
        ("train.batch_stages=[]", "train.batch_lr is sqrt"),
        ("train.seq_stages=[{share=1.0,seq_len=32}]", "seq_len is 32, expected a divisor of"),
        ("train.seq_stages=[{share=1.0,seq_len=0}]", "seq_len is 0"),
        ("train.grad_accumulation=2", "train.grad_accumulation is 2, expected 1"),
        ("train.steps=2", "train.steps is 2, expected enough"),
        ("train.batch_stages=[{share=1.0,tokens=96,rows=2}]", "rows"),
    ] {
        let found = refusal(&staged, &[set]);
        assert!(found.contains(part), "{set}: {found}");
    }
    // A step of 384 tokens needs two micro-batches of 192.
    let found = refusal(&staged, &["optimizer.in_backward=true", "optimizer.clip_norm=0"]);
    assert!(found.contains("tokens is 384, expected at most train.batch_size"), "{found}");
    let chat = recipe(scratch.path(), llama(32), ObjectiveKind::Chat);
    let found = refusal(&chat, &["train.seq_stages=[{share=1.0,seq_len=24}]"]);
    assert!(found.contains("objective.kind is not next_token"), "{found}");
}

#[test]
fn conversations_may_have_batches_of_growing_size() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::Chat);
    let tokens = [48, 192];
    recipe.train.batch_stages = tokens.map(|tokens| BatchStage { share: 0.5, tokens }).to_vec();
    let (_, watch) = run_in_memory(&recipe);
    let seen: Vec<_> = watch.steps.iter().map(|m| m.tokens_seen).collect();
    assert_eq!(seen, [48, 96, 144, 336, 528, 720]);
}
