//! Adapters on every family: the layers they reach, their results, and the unchanged base.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lehr_model::adapt::{AdapterConfig, AdapterMethod, LoraConfig, LoraScaling, Targets};
use lehr_model::io::{Checkpoint, ModelSource};
use lehr_model::{Model, Role, Tokens, Weights};
use lehr_tensor::{NamePattern, Param, Philox, Tensor, no_grad};

/// The golden folders whose weights are in one place.
fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|dir| dir.join("model.safetensors").is_file());
    dirs.sort();
    assert!(dirs.len() >= 14, "goldens are missing: {dirs:?}");
    dirs
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn lora(targets: &[&str]) -> AdapterConfig {
    AdapterConfig {
        targets: Targets::Layers(targets.iter().map(|target| NamePattern::new(*target)).collect()),
        method: AdapterMethod::Lora(LoraConfig { rank: 3, alpha: 6.0, scaling: LoraScaling::Rank }),
        seed: 5,
    }
}

fn adapted(dir: &Path, weights: Weights, targets: &[&str]) -> Model {
    Model::open_adapted(&ModelSource::open(dir).unwrap(), weights, &lora(targets)).unwrap()
}

/// The same with DoRA.
fn adapted_by_dora(dir: &Path, weights: Weights, targets: &[&str]) -> Model {
    let mut config = lora(targets);
    config.method = AdapterMethod::Dora(config.method.low_rank());
    Model::open_adapted(&ModelSource::open(dir).unwrap(), weights, &config).unwrap()
}

/// Tokens and shifted targets of the golden.
fn batch(dir: &Path, model: &Model) -> (Tokens, Tensor) {
    let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
    let ids = golden.ids("input_ids").unwrap();
    let labels = golden.ids("labels").unwrap();
    let t = ids.shape()[1];
    let shift = usize::from(model.is_causal());
    let row = |row: &[i32]| [&row[shift..], &vec![-100; shift]].concat();
    let targets: Vec<i32> = labels.ids().chunks(t).flat_map(row).collect();
    (
        model.tokens(ids.ids(), ids.shape()[0]).unwrap(),
        Tensor::from_ids(&targets, ids.shape()).unwrap(),
    )
}

/// Gives every B random values, so the adapters change the model. Lengths change by some percent.
fn fill(model: &Model) {
    for (i, param) in model.params().trainable().enumerate() {
        let mut value = Tensor::zeros(param.shape()).unwrap();
        Philox::new(9, i as u64).fill_normal(value.data_mut(), 0.1);
        if param.name().ends_with("magnitude_vector") {
            let old = param.tensor().to_vec();
            value.data_mut().iter_mut().zip(old).for_each(|(v, old)| *v = old * (1.0 + *v));
        }
        param.set(&value).unwrap();
    }
}

type Adapted = fn(&Path, Weights, &[&str]) -> Model;

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.data().iter().zip(b.data()).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

fn logits(model: &Model, tokens: &Tokens) -> Tensor {
    no_grad(|| model.logits(&model.hidden(tokens).unwrap()).unwrap())
}

/// Paths of the matrices that the model multiplies with, by their roles; a tied head has none.
fn matrices(model: &Model) -> BTreeSet<String> {
    let named = model.params().named();
    let is_applied =
        |role: Role| role.is_hidden_matrix() || matches!(role, Role::Head | Role::Gate);
    let applied = named.iter().filter(|weight| is_applied(weight.role()));
    applied.map(|weight| weight.name().strip_suffix(".weight").unwrap().to_owned()).collect()
}

#[test]
fn a_pattern_reaches_every_linear_layer_of_every_family() {
    let mut n_tied = 0;
    for dir in golden_dirs() {
        let plain = Model::load(&dir).unwrap();
        let model = adapted(&dir, Weights::F32, &["*"]);
        let reached: BTreeSet<_> = model.adapters().iter().map(|a| a.path.clone()).collect();
        assert_eq!(reached.len(), model.adapters().len(), "{}", dir.display());
        let wanted = matrices(&plain);
        let tied: Vec<_> = reached.difference(&wanted).cloned().collect();
        assert!(wanted.is_subset(&reached), "{}: {wanted:?} {reached:?}", dir.display());
        // A tied head has no matrix of its own.
        let has_head = plain.params().named().iter().any(|weight| weight.role() == Role::Head);
        assert!(tied.len() == usize::from(!has_head), "{}: {tied:?}", dir.display());
        n_tied += tied.len();
        // The base has its old names and values, and only adapters are trained.
        for param in plain.params().params() {
            let base = model.params().get(param.name()).unwrap();
            assert_eq!(base.tensor().to_vec(), param.tensor().to_vec());
            assert!(!base.is_trainable());
        }
        assert!(model.params().trainable().all(|param| param.role() == Role::Adapter));
        assert_eq!(model.params().trainable().count(), 2 * reached.len());
    }
    assert!(n_tied >= 2, "no golden has a tied head");
}

#[test]
fn new_adapters_change_no_logit() {
    for dir in golden_dirs() {
        let plain = Model::load(&dir).unwrap();
        let (tokens, _) = batch(&dir, &plain);
        // Fused layers round differently from separate ones, and DoRA's factors are not exactly 1.
        for (adapted, limit) in [(adapted as Adapted, 2e-6), (adapted_by_dora, 2e-5)] {
            let model = adapted(&dir, Weights::F32, &["*"]);
            let error = difference(&logits(&model, &tokens), &logits(&plain, &tokens));
            assert!(error <= limit, "{}: {error}", dir.display());
        }
    }
}

#[test]
fn merged_adapters_give_the_logits_and_loss_of_unmerged_ones() {
    check_merged(adapted);
}

#[test]
fn merged_dora_gives_the_logits_and_loss_of_unmerged() {
    check_merged(adapted_by_dora);
}

fn check_merged(adapted: Adapted) {
    for dir in golden_dirs() {
        // All but a tied head.
        let plain = Model::load(&dir).unwrap();
        let targets: Vec<String> = matrices(&plain).into_iter().collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let model = adapted(&dir, Weights::F32, &targets);
        fill(&model);
        let (tokens, labels) = batch(&dir, &model);
        let merged = model.merged().unwrap();
        assert!(merged.adapters().is_empty());
        assert_eq!(merged.params().params().len(), plain.params().params().len());
        let (a, b) = (logits(&model, &tokens), logits(&merged, &tokens));
        let changed = difference(&a, &logits(&plain, &tokens));
        let error = difference(&a, &b);
        assert!(error <= 2e-5 && changed > 1e-2, "{}: {error} {changed}", dir.display());
        let loss = |model: &Model| model.loss(&tokens, &labels, 7.0).unwrap().item().unwrap();
        let (a, b) = (loss(&model), loss(&merged));
        assert!((a - b).abs() <= 1e-5 * b, "{}: {a} {b}", dir.display());
        let logprobs = |model: &Model| no_grad(|| model.token_logprobs(&tokens, &labels).unwrap());
        let (a, b) = (logprobs(&model), logprobs(&merged));
        assert!(difference(&a, &b) <= 2e-5, "{}", dir.display());
        let sum: f32 = b.data().iter().sum();
        let error = (sum / -7.0 - loss(&merged)).abs();
        assert!(error < 1e-5 * loss(&merged), "{}: {error}", dir.display());
    }
}

#[test]
fn an_adapted_tied_head_is_not_merged_into_the_embedding() {
    let model = adapted(&golden("gpt2"), Weights::F32, &["lm_head"]);
    fill(&model);
    let error = model.merged().err().unwrap();
    assert!(error.to_string().contains("`lm_head` is tied to the embedding"), "{error}");
    assert!(error.hint().unwrap().contains("adapt other layers"));
}

/// Adds `factor · direction` to a parameter.
fn shift(param: &Param, direction: &[f32], factor: f32) {
    let add = |value: &mut [f32], _: Option<&[f32]>| {
        value.iter_mut().zip(direction).for_each(|(value, step)| *value += factor * step);
    };
    param.update(add).unwrap();
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Compares the gradients of all trained parameters with finite differences of the loss: along the
/// gradient itself and along a random direction.
fn check_gradients(name: &str, model: &Model, (tokens, labels): &(Tokens, Tensor)) {
    model.params().clear_grads();
    model.loss(tokens, labels, 1.0).unwrap().backward().unwrap();
    let loss = || {
        let loss = no_grad(|| model.loss(tokens, labels, 1.0).unwrap());
        f64::from(loss.item().unwrap())
    };
    for (i, param) in model.params().trainable().enumerate() {
        let grad = param.grad().unwrap_or_else(|| panic!("{name}: no gradient: {}", param.name()));
        let grad = grad.to_vec();
        let mut random = vec![0.0; grad.len()];
        Philox::new(11, i as u64).fill_normal(&mut random, 1.0);
        for direction in [&grad, &random] {
            let length = norm(direction).max(1e-12);
            let direction: Vec<f32> = direction.iter().map(|x| x / length).collect();
            let wanted: f32 = direction.iter().zip(&grad).map(|(a, b)| a * b).sum();
            let step = 2e-2;
            shift(param, &direction, step);
            let above = loss();
            shift(param, &direction, -2.0 * step);
            let below = loss();
            shift(param, &direction, step);
            let found = (above - below) / (2.0 * f64::from(step));
            let error = (found - f64::from(wanted)).abs();
            let scale = f64::from(norm(&grad)).max(0.5);
            assert!(
                error <= 2e-2 * scale,
                "{name}: {}: finite difference {found}, gradient {wanted}",
                param.name()
            );
        }
    }
}

#[test]
fn gradients_of_all_adapters_match_finite_differences() {
    for dir in golden_dirs() {
        let model = adapted(&dir, Weights::F32, &["*"]);
        fill(&model);
        check_gradients(&dir.display().to_string(), &model, &batch(&dir, &model));
    }
}

#[test]
fn a_frozen_base_has_no_gradients_and_keeps_its_bits() {
    for dir in golden_dirs() {
        let model = adapted(&dir, Weights::F32, &["*"]);
        fill(&model);
        let (tokens, labels) = batch(&dir, &model);
        let bits = |model: &Model| -> Vec<Vec<f32>> {
            let frozen = model.params().params().iter().filter(|param| !param.is_trainable());
            frozen.map(|param| param.tensor().to_vec()).collect()
        };
        let before = bits(&model);
        let mut losses = Vec::new();
        for _ in 0..3 {
            let loss = model.loss(&tokens, &labels, 7.0).unwrap();
            losses.push(loss.item().unwrap());
            loss.backward().unwrap();
            for param in model.params().params() {
                assert_eq!(param.grad().is_some(), param.is_trainable(), "{}", param.name());
            }
            for param in model.params().trainable() {
                let grad = param.grad().unwrap().to_vec();
                shift(param, &grad, -0.05);
                param.clear_grad();
            }
        }
        assert_eq!(bits(&model), before, "{}", dir.display());
        assert!(losses[2] < losses[0], "{}: {losses:?}", dir.display());
    }
}

#[test]
fn adapters_learn_over_stored_weights() {
    for adapted in [adapted as Adapted, adapted_by_dora] {
        check_stored(adapted);
    }
    // In f32 the gradients are exactly those of the loss.
    let dir = golden("llama");
    let model = adapted(&dir, Weights::Exact, &["*"]);
    fill(&model);
    check_gradients("llama, exact", &model, &batch(&dir, &model));
}

fn check_stored(adapted: Adapted) {
    for (name, format) in [("llama", "nf4"), ("llama", "int8"), ("gpt2", "q8_0"), ("glm", "int4")] {
        let dir = golden(name);
        let weights: Weights = format.parse().unwrap();
        let targets = ["*.layers.*", "*.h.*", "lm_head"];
        let targets = if name == "gpt2" { &targets[1..] } else { &[targets[0], targets[2]] };
        let model = adapted(&dir, weights, targets);
        assert!(!model.params().stored().is_empty());
        fill(&model);
        let merged = model.merged().unwrap_or_else(|_| {
            // GPT-2's head is tied.
            let model = adapted(&dir, weights, &targets[..1]);
            fill(&model);
            model.merged().unwrap()
        });
        assert!(merged.params().stored().len() < model.params().stored().len());
        let (tokens, labels) = batch(&dir, &model);
        let name = format!("{name} in {format}");
        // Products with integer codes round activations, which backward ignores.
        let step = |model: &Model| {
            let loss = model.loss(&tokens, &labels, 7.0).unwrap();
            let value = loss.item().unwrap();
            loss.backward().unwrap();
            for param in model.params().trainable() {
                shift(param, &param.grad().unwrap().to_vec(), -0.05);
                param.clear_grad();
            }
            value
        };
        let losses: Vec<f32> = (0..4).map(|_| step(&model)).collect();
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{name}: {losses:?}");
    }
}

#[test]
fn impossible_settings_are_refused() {
    let source = ModelSource::open(&golden("llama")).unwrap();
    let says = |config: &AdapterConfig, text: &str| {
        let error = Model::open_adapted(&source, Weights::F32, config).err().unwrap();
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.hint().is_some());
    };
    says(&lora(&["*.q_proj", "*.no_such_layer"]), "no linear layer matches `*.no_such_layer`");
    let mut config = lora(&["*"]);
    config.method =
        AdapterMethod::Lora(LoraConfig { rank: 0, alpha: 1.0, scaling: LoraScaling::Rank });
    says(&config, "rank of LoRA is 0");
    config.method =
        AdapterMethod::Lora(LoraConfig { rank: 1, alpha: f32::NAN, scaling: LoraScaling::Rank });
    says(&config, "alpha of LoRA is NaN");
}

#[test]
fn a_model_with_unmerged_adapters_is_not_written_as_if_it_had_none() {
    let scratch = tempfile::tempdir().unwrap();
    let model = adapted(&golden("llama"), Weights::F32, &["*.q_proj"]);
    let error = model.save(scratch.path()).unwrap_err();
    assert!(error.to_string().contains("adapter"), "{error}");
    model.merged().unwrap().save(scratch.path()).unwrap();
    assert!(Model::load(scratch.path()).is_ok());
}
