//! Saving and resuming.
//!
//! A checkpoint is written file by file into a temporary folder next to its final one. Each file is
//! synced, and the manifest with sizes and SHA-256 hashes comes last. Then the folder is renamed.
//! Wherever a crash happens, a checkpoint with a manifest under its final name is complete.

mod contents;
mod storage;

use std::path::{Path, PathBuf};

pub use contents::{Base, Contents};
use lehr_model::Model;
use lehr_model::io::{self, BaseModel, Checkpoint, MANIFEST, Manifest, ManifestFile, hex};
use lehr_model::peft::PeftAdapter;
use lehr_tokenizer::Tokenizer;
use serde::Serialize;
use sha2::{Digest, Sha256};
pub use storage::{Disk, Storage, create_dir, replace_file};

use crate::optim::Optimizer;
use crate::{Error, Objective, Result, RunDir, TrainState};

/// A checkpoint being written.
struct Writer<'a> {
    storage: &'a mut dyn Storage,
    dir: PathBuf,
    files: Vec<ManifestFile>,
}

impl Writer<'_> {
    fn write(&mut self, name: &str, parts: &mut dyn Iterator<Item = &[u8]>) -> Result<()> {
        let path = self.dir.join(name);
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut hashed = parts.inspect(|part| {
            hash.update(part);
            bytes += part.len() as u64;
        });
        self.storage.write(&path, &mut hashed).map_err(Error::io("writing", &path))?;
        let sha256 = hex(&hash.finalize());
        self.files.push(ManifestFile { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }

    fn write_text(&mut self, name: &str, text: &str) -> Result<()> {
        self.write(name, &mut std::iter::once(text.as_bytes()))
    }
}

/// Which checkpoints of a run stay when a new one is saved.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Number of newest ones.
    pub newest: usize,
    /// The step of one that stays, however old.
    pub also: Option<u64>,
}

/// Saves the checkpoint `step-N` of a run and removes those that need not stay. Returns its folder.
///
/// # Errors
/// If a file cannot be written. Earlier checkpoints are then untouched.
pub fn save(
    storage: &mut dyn Storage,
    run: &RunDir,
    contents: &Contents<'_>,
    keep: Keep,
) -> Result<PathBuf> {
    let step = contents.state.step;
    let place = run.checkpoints().join(format!("step-{step}"));
    if place.join(MANIFEST).is_file() && verify(&place).is_ok() {
        // A run resumed at its last step. Runs are deterministic, so the contents are the same.
        return Ok(place);
    }
    save_at(storage, &place, contents)?;
    for old in superfluous(run, step, keep) {
        storage.remove_dir(&old).map_err(Error::io("removing", &old))?;
    }
    Ok(place)
}

/// Lists the folders to remove after the checkpoint of `step` is saved: those older than the `keep`
/// newest, and remains of a crash. Later checkpoints are damaged, since otherwise the run would
/// have continued from them. They do not count as newest, and are replaced when their step is
/// reached.
fn superfluous(run: &RunDir, step: u64, keep: Keep) -> Vec<PathBuf> {
    let whole = list(run);
    let old = whole.iter().rev().filter(|(s, _)| *s <= step).skip(keep.newest.max(1));
    let old = old.filter(|(s, _)| keep.also != Some(*s));
    let is_rest = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_partial = name.starts_with(".step-") && name.ends_with(".partial");
        is_partial || (name.starts_with("step-") && !path.join(MANIFEST).is_file())
    };
    let entries = std::fs::read_dir(run.checkpoints()).into_iter().flatten();
    let rests = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_rest);
    old.map(|(_, path)| path.clone()).chain(rests).collect()
}

/// Saves a checkpoint in the folder `place` and replaces an existing one.
///
/// # Errors
/// If a file cannot be written.
pub fn save_at(storage: &mut dyn Storage, place: &Path, contents: &Contents<'_>) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let beside = place.with_file_name(format!(".{name}.partial"));
    storage.remove_dir(&beside).map_err(Error::io("removing", &beside))?;
    storage.create_dir(&beside).map_err(Error::io("creating", &beside))?;
    let mut writer = Writer { storage, dir: beside.clone(), files: Vec::new() };
    contents.write(&mut writer)?;
    let manifest = Manifest::new(std::mem::take(&mut writer.files));
    writer.write_text(MANIFEST, &to_json(&manifest))?;
    let storage = writer.storage;
    storage.sync_dir(&beside).map_err(Error::io("syncing", &beside))?;
    // An existing checkpoint is damaged, otherwise it would not be written again.
    storage.remove_dir(place).map_err(Error::io("removing", place))?;
    storage.rename(&beside, place).map_err(Error::io("renaming", place))?;
    let parent = place.parent().unwrap_or(Path::new("."));
    storage.sync_dir(parent).map_err(Error::io("syncing", parent))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("numbers and text") + "\n"
}

/// Lists the checkpoints of a run that have a manifest, oldest first.
#[must_use]
pub fn list(run: &RunDir) -> Vec<(u64, PathBuf)> {
    io::checkpoints(run.path())
}

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// If a file is missing or differs.
pub fn verify(dir: &Path) -> Result<()> {
    Ok(Manifest::read(dir)?.verify(dir)?)
}

/// Reads the state of a checkpoint.
///
/// # Errors
/// If it is missing or damaged.
pub fn read_state(dir: &Path) -> Result<TrainState> {
    let path = dir.join("state.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
    let fault = |e| Error::Checkpoint { path: dir.to_owned(), reason: format!("state.json: {e}") };
    serde_json::from_str(&text).map_err(fault)
}

/// Loads weights, moments and state of a checkpoint into a run's objective and optimiser.
///
/// # Errors
/// If the checkpoint is damaged, belongs to another model or was saved in the middle of a step, or
/// its base has changed.
pub fn restore(
    dir: &Path,
    objective: &mut dyn Objective,
    optimizer: &mut dyn Optimizer,
) -> Result<TrainState> {
    let fault = |reason: String| Error::Checkpoint { path: dir.to_owned(), reason };
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(Error::io("reading", &path))
    };
    let state = read_state(dir)?;
    if state.params_ahead > 0 {
        let n = state.params_ahead;
        return Err(fault(format!("{n} parameters already have the update of the next step")));
    }
    check_vocabulary_and_labels(dir, objective)?;
    restore_weights(dir, objective.model())?;
    let moments = Checkpoint::open(&dir.join("optimizer.safetensors"))?;
    optimizer.restore(&|name, shape| Ok(moments.tensor(name, shape)?))?;
    if objective.state()?.is_some() {
        let tensors = Checkpoint::open(&dir.join(contents::OBJECTIVE_TENSORS))?;
        let values = serde_json::from_str(&read(contents::OBJECTIVE_VALUES)?)
            .map_err(|e| fault(format!("{}: {e}", contents::OBJECTIVE_VALUES)))?;
        objective.restore(&|name, shape| Ok(tensors.tensor(name, shape)?), &values)?;
    }
    Ok(state)
}

/// Loads the weights of a checkpoint: the adapter beside an unchanged base, or all of the model's.
fn restore_weights(dir: &Path, model: &Model) -> Result<()> {
    if !model.adapters().is_empty() {
        BaseModel::checked(dir)?;
        return Ok(model.load_adapter(&PeftAdapter::open(dir)?)?);
    }
    let weights = Checkpoint::open(dir)?;
    for param in model.params().params() {
        param.set(&weights.tensor(param.name(), param.shape())?)?;
    }
    Ok(())
}

/// Checks that tokenizer and labels are those with which the weights were trained. They differ if
/// the data has changed.
fn check_vocabulary_and_labels(dir: &Path, objective: &dyn Objective) -> Result<()> {
    let fault = |reason: String| Error::Checkpoint { path: dir.to_owned(), reason };
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
    if tokenizer.hash() != objective.tokenizer().hash() {
        let reason = "its tokenizer is not the one that the data and the recipe give now";
        return Err(fault(reason.to_owned()));
    }
    let config = io::read_json(&dir.join("config.json"))?;
    let labels = "id2label";
    if config.get(labels) != objective.config_json().get(labels) {
        return Err(fault("its labels are not those of the data now".to_owned()));
    }
    Ok(())
}
