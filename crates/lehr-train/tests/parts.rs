//! Short runs with each part of lehr's own family, switched on as on the command line.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{llama, recipe, run_in_memory};
use lehr_model::ActivationCheckpointing;
use lehr_train::recipe::{ModelConfig, ObjectiveKind};

const PARTS: [&str; 13] = [
    "mlp=relu2",
    "norm_weights=false",
    "embedding_norm=true",
    "qk_norm=true",
    "zero_init_outputs=true",
    "logit_softcap=15",
    "residual_scalars=true",
    "x0_scalars=true",
    "value_embeddings=true",
    "bigram_rows=400",
    "smear=true",
    "backout=true",
    "key_offset=true",
];

/// Overrides that switch these parts on.
fn sets(parts: &[&str]) -> Vec<String> {
    let part = |part: &&str| format!("model.{part}");
    ["model.kind=lehr".to_owned()].into_iter().chain(parts.iter().map(part)).collect()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[test]
fn every_part_alone_and_all_together_learn() {
    let scratch = tempfile::tempdir().unwrap();
    let mut base = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    base.train.steps = 20;
    let mut all: Vec<Vec<&str>> = PARTS.iter().map(|part| vec![*part]).collect();
    all.push(PARTS.to_vec());
    let plain = run_in_memory(&base).1.losses();
    assert_eq!(run_in_memory(&base.with_overrides(&sets(&[])).unwrap()).1.losses(), plain);
    for parts in all {
        let recipe = base.with_overrides(&sets(&parts)).unwrap();
        let losses = run_in_memory(&recipe).1.losses();
        assert!(losses != plain, "{parts:?} changes nothing");
        let (first, last) = (mean(&losses[..3]), mean(&losses[17..]));
        assert!(last < 0.93 * first, "{parts:?}: the loss goes from {first:.3} to {last:.3}");
    }
}

#[test]
fn recomputed_activations_change_no_loss_with_all_parts() {
    let scratch = tempfile::tempdir().unwrap();
    let base = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    let mut recipe = base.with_overrides(&sets(&PARTS)).unwrap();
    let kept = run_in_memory(&recipe).1.losses();
    recipe.train.activation_checkpointing = ActivationCheckpointing::Recompute;
    assert_eq!(kept, run_in_memory(&recipe).1.losses());
}

#[test]
fn nanochat_learns() {
    let scratch = tempfile::tempdir().unwrap();
    let mut base = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    base.train.steps = 20;
    let sets = ["model.kind=nanochat", "model.tie_embeddings=false"].map(str::to_owned);
    let recipe = base.with_overrides(&sets).unwrap();
    let ModelConfig::Nanochat(model) = &recipe.model else { panic!("a nanochat") };
    assert_eq!(model.logit_softcap, 15.0);
    let losses = run_in_memory(&recipe).1.losses();
    assert!(mean(&losses[17..]) < 0.93 * mean(&losses[..3]), "{losses:?}");
}

#[test]
fn settings_that_contradict_each_other_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let base = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    for (parts, says) in [
        (vec!["head_init_std=0.001"], "model.head_init_std is 0.001, expected 0"),
        (vec!["qk_norm_gain=1.2"], "model.qk_norm_gain is 1.2, expected 1"),
        (vec!["logit_softcap=-1"], "model.logit_softcap is -1"),
        (vec!["smear=1"], "expected a boolean"),
        (vec!["smears=true"], "did you mean `smear`?"),
    ] {
        let error = base.with_overrides(&sets(&parts)).unwrap_err();
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(text.contains(says), "{parts:?}: {text}");
    }
}
