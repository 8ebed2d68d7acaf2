//! What optimisers make of the roles of parameters, for every family.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use lehr_model::adapt::{AdapterConfig, AdapterMethod, LoraConfig, LoraScaling, Targets};
use lehr_model::io::{Checkpoint, ModelSource};
use lehr_model::{ActivationCheckpointing, Model, Role, Tokens, Weights};
use lehr_tensor::inplace::{Clip, SquaredGradNorm};
use lehr_tensor::{NamePattern, Param, ParamStore, Tensor};
use lehr_train::recipe::AdamwConfig;
use lehr_train::{AdamW, Optimizer, Update};

const LR: f32 = 1e-3;
const RATIO: f32 = 4.0;

fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 16, "goldens are missing");
    dirs
}

fn optimizer(params: &ParamStore) -> AdamW {
    let config = AdamwConfig {
        beta1: 0.9,
        beta2: 0.95,
        // So small that a first step is the learning rate times the sign of the gradient.
        eps: 1e-20,
        weight_decay: 0.0,
        embedding_lr_ratio: RATIO,
        ..common::adamw()
    };
    AdamW::new(&config, LR, params).unwrap()
}

/// Tokens and targets of the golden, targets where they are predicted.
fn batch(dir: &Path, model: &Model) -> (Tokens, Tensor) {
    let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
    let (ids, labels) = (golden.ids("input_ids").unwrap(), golden.ids("labels").unwrap());
    let shift = usize::from(model.is_causal());
    let row = |row: &[i32]| [&row[shift..], &vec![-100; shift]].concat();
    let targets: Vec<i32> = labels.ids().chunks(ids.shape()[1]).flat_map(row).collect();
    let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
    (tokens, Tensor::from_ids(&targets, ids.shape()).unwrap())
}

fn values(params: &ParamStore) -> Vec<Vec<f32>> {
    params.params().iter().map(|param| param.tensor().to_vec()).collect()
}

/// One step of training; gives the loss before it.
fn step(model: &Model, optimizer: &mut AdamW, (tokens, targets): &(Tokens, Tensor), n: u64) -> f32 {
    let loss = model.loss(tokens, targets, 8.0).unwrap();
    let value = loss.item().unwrap();
    loss.backward().unwrap();
    let params = model.params();
    let grads: Vec<_> = params.params().iter().filter_map(Param::grad).collect();
    let squared_norm = SquaredGradNorm::of(&grads, &[]).unwrap();
    drop(grads);
    let update = Update { number: n, lr: LR, grad_scale: 1.0 };
    optimizer.step(params, update, Clip { squared_norm: &squared_norm, max_norm: 0.0 }).unwrap();
    value
}

#[test]
fn the_token_embedding_of_every_family_learns_at_its_own_rate() {
    for dir in golden_dirs() {
        let model = Model::load(&dir).unwrap();
        let mut optimizer = optimizer(model.params());
        let before = values(model.params());
        step(&model, &mut optimizer, &batch(&dir, &model), 1);
        let mut n_embeddings = 0;
        for (param, before) in model.params().params().iter().zip(&before) {
            if param.grad().is_none() {
                continue;
            }
            let after = param.tensor();
            let moved = after.data().iter().zip(before).map(|(a, b)| (a - b).abs());
            let largest = moved.fold(0.0, f32::max);
            n_embeddings += usize::from(param.role() == Role::TokenEmbedding);
            let rate = if param.role().is_embedding() { RATIO } else { 1.0 };
            let (name, place) = (param.name(), dir.display());
            assert!((largest / (rate * LR) - 1.0).abs() < 2e-2, "{place}: {name} by {largest}");
        }
        assert_eq!(n_embeddings, 1, "{}", dir.display());
    }
}

#[test]
fn frozen_parameters_keep_their_bits_over_training_and_have_no_state() {
    for dir in golden_dirs() {
        let mut model = Model::load(&dir).unwrap();
        model.set_activation_checkpointing(ActivationCheckpointing::Recompute);
        let n_all = model.params().params().len();
        // By role, and by name.
        let n_roles = model.params().freeze(|param| param.role().is_embedding());
        let n_names = model.params().freeze_matching(&[NamePattern::new("*.0.*")]).unwrap();
        assert!(n_roles > 0 && n_names > 0 && n_roles + n_names < n_all);
        let mut optimizer = optimizer(model.params());
        let n_trained = model.params().trainable().count();
        assert_eq!(optimizer.state().len(), 2 * n_trained, "{}", dir.display());
        let (before, batch) = (values(model.params()), batch(&dir, &model));
        let mut losses = Vec::new();
        for n in 1..=4 {
            losses.push(step(&model, &mut optimizer, &batch, n));
            for param in model.params().params().iter().filter(|param| !param.is_trainable()) {
                assert!(param.grad().is_none(), "{}", param.name());
            }
            model.params().clear_grads();
        }
        for (param, before) in model.params().params().iter().zip(&before) {
            let is_same = param.tensor().to_vec() == *before;
            let is_reached = !param.name().starts_with("bert.pooler.");
            assert_eq!(is_same, !param.is_trainable() || !is_reached, "{}", param.name());
        }
        assert!(losses[3] < losses[0], "{}: {losses:?}", dir.display());
    }
}

#[test]
fn only_adapters_are_trained_over_a_quantised_base() {
    let dir = golden_dirs().into_iter().find(|dir| dir.ends_with("qwen3")).unwrap();
    let adapters = AdapterConfig {
        targets: Targets::Layers(["*.self_attn.*", "*.mlp.*"].map(NamePattern::new).to_vec()),
        method: AdapterMethod::Lora(LoraConfig { rank: 4, alpha: 8.0, scaling: LoraScaling::Rank }),
        seed: 1,
    };
    let source = ModelSource::open(&dir).unwrap();
    let weights: Weights = "int8".parse().unwrap();
    let model = Model::open_adapted(&source, weights, &adapters).unwrap();
    let mut optimizer = optimizer(model.params());
    assert_eq!(optimizer.state().len(), 4 * model.adapters().len());
    let batch = batch(&dir, &model);
    let losses: Vec<f32> = (1..=6)
        .map(|n| {
            let loss = step(&model, &mut optimizer, &batch, n);
            model.params().clear_grads();
            loss
        })
        .collect();
    assert!(losses[5] < losses[0], "{losses:?}");
}
