//! Training of adapters: what changes, what is saved, and how a run continues.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;

use common::{Watch, adapting, prepared, run_watched, weights, write_data};
use lehr_infer::Loaded;
use lehr_model::peft::PeftAdapter;
use lehr_model::{Classifier, Model, Role, Weights};
use lehr_tensor::no_grad;
use lehr_train::recipe::{AdapterSection, ModelConfig, ObjectiveKind};
use lehr_train::{Recipe, evaluate};

fn checkpoint(recipe: &Recipe, step: u64) -> PathBuf {
    recipe.dir().join(format!("checkpoints/step-{step}"))
}

fn files(recipe: &Recipe, step: u64) -> [Vec<u8>; 3] {
    let names = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"];
    names.map(|name| std::fs::read(checkpoint(recipe, step).join(name)).unwrap())
}

/// Logits of a few ids.
fn logits(model: &Model) -> Vec<f32> {
    let tokens = model.tokens(&[5, 9, 200, 31, 7, 64], 1).unwrap();
    no_grad(|| model.logits(&model.hidden(&tokens).unwrap()).unwrap()).to_vec()
}

#[test]
fn only_the_adapter_changes_and_it_resumes_bit_for_bit() {
    for kind in ["lora", "dora"] {
        check_resume(kind);
    }
}

fn check_resume(kind: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let (_, tuned) = adapting(scratch.path());
    let tuned = tuned.with_overrides(&[format!("adapter.kind={kind}")]).unwrap();
    let task = prepared(&tuned);
    // A new adapter changes nothing.
    let mut plain = tuned.clone();
    plain.adapter = AdapterSection::None;
    let loss = |task: &lehr_train::Task| {
        evaluate(task.objective.as_ref(), task.validation.as_ref(), 2).unwrap().loss
    };
    assert!((loss(&task) - loss(&prepared(&plain))).abs() < 1e-5);
    let before = weights(&task);
    let (task, watch) = run_watched(&tuned, Watch::default());
    let losses = watch.losses();
    assert!(losses.last().unwrap() < losses.first().unwrap(), "{losses:?}");
    let roles = task.objective.model().params();
    for ((name, before), (_, after)) in before.iter().zip(&weights(&task)) {
        let is_adapter = roles.get(name).unwrap().role() == Role::Adapter;
        assert_eq!(before != after, is_adapter, "{name}");
    }
    for k in [1, 4] {
        let mut parts = tuned.clone();
        parts.run.dir = scratch.path().join(format!("stopped-{k}")).display().to_string();
        run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
        let (again, second) = run_watched(&parts, Watch::default());
        assert_eq!(second.started, Some(k));
        assert!(files(&parts, 6) == files(&tuned, 6), "stopped at {k}");
        assert!(weights(&again) == weights(&task), "stopped at {k}");
    }
}

#[test]
fn a_checkpoint_is_an_adapter_of_peft_and_opens_over_its_base() {
    for kind in ["lora", "dora"] {
        check_checkpoint(kind);
    }
}

fn check_checkpoint(kind: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let (base, tuned) = adapting(scratch.path());
    let tuned = tuned.with_overrides(&[format!("adapter.kind={kind}")]).unwrap();
    let (task, _) = run_watched(&tuned, Watch::default());
    let dir = checkpoint(&tuned, 6);
    assert!(!dir.join("model.safetensors").exists());
    let adapter = PeftAdapter::open(&dir).unwrap();
    // Seven linear layers in each of two blocks.
    assert_eq!(adapter.n_layers(), 14);
    assert!(adapter.base().unwrap().ends_with("step-6"), "{:?}", adapter.base());
    let trained = logits(task.objective.model());
    assert_eq!(logits(&Loaded::open(&tuned.dir(), Weights::F32).unwrap().model), trained);
    let beside = Loaded::open_with_adapter(&base.dir(), &dir, Weights::F32).unwrap();
    assert_eq!(logits(&beside.model), trained);
    assert_ne!(logits(&Loaded::open(&base.dir(), Weights::F32).unwrap().model), trained);

    // It is no whole model: what wants one says so.
    let mut again = tuned.clone();
    again.model = ModelConfig::Load { path: tuned.run.dir.clone() };
    again.run.dir = scratch.path().join("again").display().to_string();
    let error = lehr_train::prepare(&again, scratch.path(), &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("it has an adapter and not the weights"), "{error}");
    assert!(error.hint().unwrap().contains("lehr convert MODEL --adapter"), "{error}");

    // Over another base it does not open.
    let weights = checkpoint(&base, 6).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(checkpoint(&base, 6).join("manifest.json")).unwrap();
    let error = Loaded::open(&tuned.dir(), Weights::F32).err().unwrap().to_string();
    assert!(error.contains("base.json") && error.contains("has changed"), "{error}");
}

#[test]
fn an_adapter_learns_over_a_quantised_base() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, mut tuned) = adapting(scratch.path());
    let sets = ["adapter.weights=int8", "adapter.scaling=root_of_rank", "train.steps=12"];
    tuned = tuned.with_overrides(&sets.map(str::to_owned)).unwrap();
    let (task, watch) = run_watched(&tuned, Watch::default());
    let model = task.objective.model();
    assert_eq!(model.params().stored().len(), 14);
    assert_eq!(model.adapters().len(), 14);
    let losses = watch.losses();
    assert!(losses.last().unwrap() < losses.first().unwrap(), "{losses:?}");
    assert!(
        String::from_utf8(files(&tuned, 12)[1].clone()).unwrap().contains("\"use_rslora\": true")
    );
}

#[test]
fn impossible_settings_are_refused_together() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, tuned) = adapting(scratch.path());
    let refused = |sets: &[&str]| {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        tuned.with_overrides(&sets).unwrap_err().to_string()
    };
    let error = refused(&["adapter.rank=0", "adapter.weights=int5", "adapter.targets=[\"\"]"]);
    for key in ["adapter.rank is 0", "adapter.weights is int5", "adapter.targets is empty at 0"] {
        assert!(error.contains(key), "{key}: {error}");
    }
    assert!(refused(&["checkpoint.weights=trained"]).contains("refer to the model"));
    assert!(refused(&["train.freeze=[\"*\"]"]).contains("freezes the whole model"));
    assert!(refused(&["adapter.colour=1"]).contains("colour"));
    let mut wrong = tuned.clone();
    wrong = wrong.with_overrides(&["adapter.targets=[\"*.no_such\"]".to_owned()]).unwrap();
    let error = lehr_train::prepare(&wrong, scratch.path(), &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("no linear layer matches `*.no_such`"), "{error}");
}

#[test]
fn a_classifier_has_its_head_beside_the_adapter() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, mut tuned) = adapting(scratch.path());
    tuned.objective = ObjectiveKind::CLASSIFY;
    tuned.data.path = write_data(scratch.path(), tuned.objective).display().to_string();
    (tuned.train.steps, tuned.train.batch_size) = (150, 8);
    (tuned.optimizer.lr, tuned.checkpoint.every_steps) = (1e-2, 0);
    let (task, watch) = run_watched(&tuned, Watch::default());
    let losses = watch.losses();
    let sum = |losses: &[f64]| losses.iter().sum::<f64>();
    assert!(sum(&losses[130..]) < 0.8 * sum(&losses[..20]), "{losses:?}");
    let config = String::from_utf8(files(&tuned, 150)[1].clone()).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["modules_to_save"], serde_json::json!(["score"]));
    assert_eq!(config["task_type"], "SEQ_CLS");

    let classifier = Classifier::load(&checkpoint(&tuned, 150)).unwrap();
    let trained = weights(&task);
    for param in classifier.model().params().params() {
        let bits: Vec<_> = param.tensor().to_vec().into_iter().map(f32::to_bits).collect();
        let (_, want) = trained.iter().find(|(name, _)| name == param.name()).unwrap();
        assert!(&bits == want, "{}", param.name());
    }
    assert!(classifier.model().params().get("score.weight").is_some());
    // It is no language model, and no base for another head.
    let error = Loaded::open(&tuned.dir(), Weights::F32).err().unwrap();
    assert!(error.to_string().contains("whole layers beside its updates"), "{error}");
    assert!(error.hint().unwrap().contains("lehr classify"), "{error}");

    let mut parts = tuned.clone();
    parts.run.dir = scratch.path().join("stopped").display().to_string();
    run_watched(&parts, Watch { stop_after: Some(3), ..Watch::default() });
    run_watched(&parts, Watch::default());
    assert!(files(&parts, 150) == files(&tuned, 150), "a resumed run differs");
}
