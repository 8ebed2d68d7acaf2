//! A run continues only from the inputs of its checkpoint, and one process at a time writes it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::{Watch, checkpoint_bytes, gpt2, prepared, recipe, run_watched};
use lehr_model::io::{Manifest, ManifestFile};
use lehr_train::recipe::{ModelConfig, ObjectiveKind, TokenizerConfig};
use lehr_train::{Error, Recipe, Result, RunDir, checkpoint, locate, prepare, run};

/// A run that was stopped after two steps, with two files of data in a folder.
fn stopped_run(scratch: &Path) -> (Recipe, PathBuf) {
    let mut recipe = recipe(scratch, gpt2(16), ObjectiveKind::NextToken);
    let folder = scratch.join("texts");
    fs::create_dir(&folder).unwrap();
    for name in ["a.txt", "b.txt"] {
        fs::copy(&recipe.data.path, folder.join(name)).unwrap();
    }
    recipe.data.path = folder.display().to_string();
    run_watched(&recipe, Watch { stop_after: Some(2), ..Watch::default() });
    (recipe, folder)
}

/// Continues a run as the command line does.
fn resume(recipe: &Recipe, accept: bool) -> Result<Watch> {
    let mut dir = RunDir::open(recipe)?;
    if accept {
        dir = dir.accepting_changed_data();
    }
    let located = locate(recipe, dir)?;
    let cache = located.dir.cache();
    let mut task = prepare(&located.recipe, &cache, &mut |_| ())?;
    let (mut watch, stop) = (Watch::default(), AtomicBool::new(false));
    run(&located.recipe, &mut task, Some(&located.dir), &mut watch, &stop)?;
    Ok(watch)
}

fn check_refused(recipe: &Recipe, says: &[&str], case: &str) {
    let error = resume(recipe, false).err().unwrap_or_else(|| panic!("{case}: it went on"));
    assert!(matches!(error, Error::InputsChanged { .. }), "{case}: {error}");
    let text = format!("{error}; {}", error.hint().unwrap());
    for part in ["have changed", "--accept-changed-data"].iter().chain(says) {
        assert!(text.contains(part), "{case}: {text:?} does not say {part:?}");
    }
}

#[test]
fn changed_added_and_missing_data_is_named_and_continues_only_on_request() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, folder) = stopped_run(scratch.path());
    let (a, c) = (folder.join("a.txt"), folder.join("c.txt"));
    let whole = fs::read_to_string(&a).unwrap();
    let other = whole.replacen("glass", "grass", 1);
    assert_eq!(other.len(), whole.len());

    fs::write(&a, &other).unwrap();
    check_refused(&recipe, &["training data a.txt", "SHA-256"], "one letter");
    fs::write(&a, format!("{whole}One more line.\n")).unwrap();
    check_refused(&recipe, &["training data a.txt", "bytes"], "one more line");
    fs::remove_file(&a).unwrap();
    check_refused(&recipe, &["training data a.txt", "not there now"], "a missing file");
    fs::write(&a, &whole).unwrap();
    fs::write(&c, &whole).unwrap();
    check_refused(&recipe, &["training data c.txt", "was not there"], "a new file");
    fs::remove_file(&c).unwrap();

    fs::write(&a, &other).unwrap();
    let watch = resume(&recipe, true).unwrap();
    assert_eq!(watch.started, Some(2));
    assert!(watch.warnings.iter().any(|w| w.contains("a.txt")), "{:?}", watch.warnings);
    // From then on the run belongs to the data that was accepted.
    let again = resume(&recipe, false).unwrap();
    assert!(again.warnings.is_empty() && again.started == Some(6), "{:?}", again.warnings);
}

#[test]
fn a_run_with_unchanged_inputs_continues_without_a_warning() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, _) = stopped_run(scratch.path());
    let watch = resume(&recipe, false).unwrap();
    assert!(watch.warnings.is_empty() && watch.started == Some(2), "{:?}", watch.warnings);
    let mut whole = recipe.clone();
    whole.run.dir = scratch.path().join("whole").display().to_string();
    run_watched(&whole, Watch::default());
    assert!(checkpoint_bytes(&recipe, 6) == checkpoint_bytes(&whole, 6));
}

#[test]
fn other_labels_are_refused_even_if_changed_data_is_accepted() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(16), ObjectiveKind::CLASSIFY);
    run_watched(&recipe, Watch { stop_after: Some(2), ..Watch::default() });
    let text = fs::read_to_string(&recipe.data.path).unwrap();
    // In the order of names, `good` would come first now.
    fs::write(&recipe.data.path, text.replace("\"bad\"", "\"zzz\"")).unwrap();
    check_refused(&recipe, &["training data labelled.jsonl"], "renamed labels");
    let error = resume(&recipe, true).err().unwrap().to_string();
    for part in ["the labels are", "good, zzz", "bad, good", "labelled.jsonl"] {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn a_changed_base_model_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let first = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    run_watched(&first, Watch::default());
    let base = scratch.path().join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(first.dir().join("checkpoints/step-6").join(name), base.join(name)).unwrap();
    }
    let mut tuned = first;
    tuned.run.dir = scratch.path().join("tuned").display().to_string();
    tuned.model = ModelConfig::Load { path: base.display().to_string() };
    tuned.tokenizer = TokenizerConfig::Model;
    run_watched(&tuned, Watch { stop_after: Some(2), ..Watch::default() });
    let weights = base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    check_refused(&tuned, &["base model model.safetensors"], "one bit of the base");
}

/// Takes the inputs out of a checkpoint's state, as an earlier version wrote it.
fn forget_inputs(dir: &Path) {
    let path = dir.join("state.json");
    let mut state: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert!(state.as_object_mut().unwrap().remove("inputs").is_some());
    fs::write(&path, state.to_string()).unwrap();
    let files = Manifest::read(dir).unwrap().files;
    let hashed = |file: ManifestFile| ManifestFile::of(&dir.join(&file.name), file.name).unwrap();
    let manifest = Manifest::new(files.into_iter().map(hashed).collect());
    fs::write(dir.join("manifest.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
}

#[test]
fn a_checkpoint_without_inputs_continues_with_a_warning() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, _) = stopped_run(scratch.path());
    forget_inputs(&recipe.dir().join("checkpoints/step-2"));
    let watch = resume(&recipe, false).unwrap();
    assert_eq!(watch.started, Some(2));
    let [warning] = watch.warnings.as_slice() else { panic!("{:?}", watch.warnings) };
    assert!(warning.contains("does not name its data"), "{warning}");
    let state = checkpoint::read_state(&recipe.dir().join("checkpoints/step-6")).unwrap();
    assert!(state.inputs.is_some(), "the new checkpoint does not name its data either");
}

#[test]
fn a_run_that_is_stopped_before_its_first_step_saves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    let (mut task, dir) = (prepared(&recipe), RunDir::open(&recipe).unwrap());
    let stop = AtomicBool::new(true);
    let outcome = run(&recipe, &mut task, Some(&dir), &mut Watch::default(), &stop).unwrap();
    assert!(!outcome.finished);
    assert!(checkpoint::list(&dir).is_empty());
}

#[test]
fn a_run_directory_has_one_writer_and_the_lock_of_a_dead_process_is_free() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    let dir = RunDir::open(&recipe).unwrap();
    let error = RunDir::open(&recipe).unwrap_err();
    let Error::InUse { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, std::process::id());
    let text = format!("{error}; {}", error.hint().unwrap());
    assert!(text.contains("is in use: process ") && text.contains("kill"), "{text}");
    let other = dir.clone();
    drop(dir);
    RunDir::open(&recipe).unwrap_err();
    drop(other);
    drop(RunDir::open(&recipe).unwrap());
    // What a killed process leaves: its name, but no lock.
    fs::write(recipe.dir().join("lock"), "{\"pid\":1,\"host\":\"here\"}\n").unwrap();
    drop(RunDir::open(&recipe).unwrap());
}
