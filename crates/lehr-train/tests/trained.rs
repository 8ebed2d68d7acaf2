//! Frozen parameters, and checkpoints that hold only what is trained.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Watch, checkpoint_bytes, llama, prepared, recipe, run_watched, weights, write_data};
use lehr_infer::{Loaded, resolve_model};
use lehr_model::io::Checkpoint;
use lehr_model::{Classifier, Weights};
use lehr_train::recipe::{DataConfig, ModelConfig, ObjectiveKind, SavedWeights, TokenizerConfig};
use lehr_train::{Recipe, RunDir, prepare, run};

/// All but the last block, the final norm and a classifier's head.
const FROZEN: [&str; 2] = ["*embed_tokens*", "*.layers.0.*"];

/// A finished run, and a recipe that fine-tunes its last block for `objective`.
fn finetuning(scratch: &Path, objective: ObjectiveKind) -> (Recipe, Recipe) {
    let base_dir = scratch.join("base");
    std::fs::create_dir_all(&base_dir).unwrap();
    let base = recipe(&base_dir, llama(32), ObjectiveKind::NextToken);
    run_watched(&base, Watch::default());
    let mut tuned = Recipe {
        data: DataConfig {
            path: write_data(scratch, objective).display().to_string(),
            ..base.data.clone()
        },
        tokenizer: TokenizerConfig::Model,
        model: ModelConfig::Load { path: base.run.dir.clone() },
        objective,
        ..base.clone()
    };
    tuned.run.dir = scratch.join("tuned").display().to_string();
    tuned.train.freeze = FROZEN.map(str::to_owned).to_vec();
    tuned.checkpoint.weights = SavedWeights::Trained;
    (base, tuned)
}

fn checkpoint(recipe: &Recipe, step: u64) -> PathBuf {
    recipe.dir().join(format!("checkpoints/step-{step}"))
}

fn is_frozen(name: &str) -> bool {
    name.contains("embed_tokens") || name.contains(".layers.0.")
}

/// The values of a model that is opened for use.
fn opened(path: &Path) -> Vec<(String, Vec<u32>)> {
    let loaded = Loaded::open(path, Weights::F32).unwrap();
    let params = loaded.model.params().params().iter();
    params.map(|p| (p.name().to_owned(), bits(&p.tensor().to_vec()))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn frozen_weights_stay_and_the_others_resume_bit_for_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, tuned) = finetuning(scratch.path(), ObjectiveKind::Chat);
    let before = weights(&prepared(&tuned));
    let (task, _) = run_watched(&tuned, Watch::default());
    let after = weights(&task);
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert_eq!(before == after, is_frozen(name), "{name}");
    }
    // The checkpoint holds the trained weights and moments alone.
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let file = Checkpoint::open(&checkpoint(&tuned, 6).join(file)).unwrap();
        assert!(file.names().all(|name| !is_frozen(name)));
        assert!(file.names().any(|name| name.contains(".layers.1.")));
    }
    let size = |recipe: &Recipe, step| checkpoint_bytes(recipe, step)[0].len();
    assert!(size(&tuned, 6) < size(&base, 6), "{} bytes", size(&tuned, 6));
    for k in [1, 4] {
        let mut parts = tuned.clone();
        parts.run.dir = scratch.path().join(format!("stopped-{k}")).display().to_string();
        run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
        let (task, second) = run_watched(&parts, Watch::default());
        assert_eq!(second.started, Some(k));
        assert!(checkpoint_bytes(&parts, 6) == checkpoint_bytes(&tuned, 6), "stopped at {k}");
        assert!(weights(&task) == after, "stopped at {k}");
    }
    // Who uses the run gets the whole model, and another run can start from it.
    assert!(opened(&tuned.dir()) == after);
    let mut third = tuned;
    third.model = ModelConfig::Load { path: third.run.dir };
    third.run.dir = scratch.path().join("third").display().to_string();
    let (task, _) = run_watched(&third, Watch::default());
    assert!(opened(&third.dir()) == weights(&task));
    for ((name, first), (_, third)) in after.iter().zip(&weights(&task)) {
        assert_eq!(first == third, is_frozen(name), "{name}");
    }
}

#[test]
fn a_classifier_whose_backbone_is_frozen_keeps_its_head() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, mut tuned) = finetuning(scratch.path(), ObjectiveKind::CLASSIFY);
    tuned.train.freeze = vec!["model.*".to_owned()];
    let (task, _) = run_watched(&tuned, Watch::default());
    let dir = resolve_model(&tuned.dir()).unwrap();
    let names = Checkpoint::open(&dir.join("model.safetensors")).unwrap();
    assert_eq!(names.names().collect::<Vec<_>>(), ["score.weight"]);
    let classifier = Classifier::load(&dir).unwrap();
    let params = classifier.model().params().params().iter();
    let found: Vec<_> = params.map(|p| (p.name().to_owned(), bits(&p.tensor().to_vec()))).collect();
    assert!(found == weights(&task));
    // A head that is frozen itself is in no base, so it is saved.
    tuned.train.freeze = vec!["score*".to_owned(), "*embed_tokens*".to_owned()];
    tuned.run.dir = scratch.path().join("head").display().to_string();
    let (task, _) = run_watched(&tuned, Watch::default());
    let classifier = Classifier::load(&resolve_model(&tuned.dir()).unwrap()).unwrap();
    let score = classifier.model().params().get("score.weight").unwrap().tensor().to_vec();
    let want = weights(&task).into_iter().find(|(name, _)| name == "score.weight").unwrap().1;
    assert_eq!(bits(&score), want);
}

#[test]
fn a_base_that_has_changed_or_is_gone_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, tuned) = finetuning(scratch.path(), ObjectiveKind::Chat);
    run_watched(&tuned, Watch { stop_after: Some(3), ..Watch::default() });
    let of_base = checkpoint(&base, 6);
    let refuses = |says: &str| {
        let dir = resolve_model(&tuned.dir()).unwrap();
        let used = Loaded::open(&dir, Weights::AsStored).err().unwrap();
        let (mut task, dir) = (prepared(&tuned), RunDir::open(&tuned).unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        let resumed = run(&tuned, &mut task, Some(&dir), &mut Watch::default(), &stop);
        let error = used.to_string();
        assert!(error.contains("base.json") && error.contains(says), "{error}");
        assert!(error.contains("step-6"), "the base is not named: {error}");
        assert!(used.hint().unwrap().contains("put the base"), "{error}");
        let error = resumed.unwrap_err();
        assert!(error.to_string().contains("base model model.safetensors"), "{error}");
        assert!(error.hint().unwrap().contains("put the files back"), "{error}");
    };
    // Trained further in its place: other weights of the same size.
    let file = of_base.join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let manifest = std::fs::read_to_string(of_base.join("manifest.json")).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &changed).unwrap();
    std::fs::remove_file(of_base.join("manifest.json")).unwrap();
    let error = Loaded::open(&tuned.dir(), Weights::AsStored).err().unwrap().to_string();
    assert!(error.contains("has changed"), "{error}");
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(of_base.join("manifest.json"), manifest).unwrap();
    Loaded::open(&tuned.dir(), Weights::AsStored).unwrap();
    // Or replaced by a run of another seed, with a manifest of its own.
    let mut other = base.clone();
    other.run.seed += 1;
    std::fs::remove_dir_all(base.dir()).unwrap();
    run_watched(&other, Watch::default());
    refuses("has changed");
    std::fs::remove_dir_all(&of_base).unwrap();
    let error = Loaded::open(&tuned.dir(), Weights::AsStored).err().unwrap().to_string();
    assert!(error.contains("is not there"), "{error}");
}

#[test]
fn patterns_that_fit_nothing_or_everything_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    let mut refused = |freeze: &str, says: &[&str]| {
        recipe.train.freeze = vec![freeze.to_owned()];
        let error = prepare(&recipe, scratch.path(), &mut |_| ()).err().unwrap().to_string();
        says.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    };
    refused("*.layers.7.*", &["train.freeze", "*.layers.7.*"]);
    refused("*", &["nothing is left to train"]);
    recipe.train.freeze = FROZEN.map(str::to_owned).to_vec();
    let mut notes = Vec::new();
    prepare(&recipe, scratch.path(), &mut |note| notes.push(note.to_owned())).unwrap();
    assert!(notes.iter().any(|note| note.contains("are frozen")), "{notes:?}");
}
