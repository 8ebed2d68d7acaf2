//! Saving and resuming.
//!
//! A checkpoint is written beside its place file by file, each synced, the manifest with sizes and
//! SHA-256 hashes last; then the folder is renamed. Whatever moment a crash picks, every checkpoint
//! that has a manifest under its final name is whole.

mod storage;

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, TensorFile};
use lehr_tokenizer::chat::ChatTemplate;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
pub use storage::{Disk, Storage};

use crate::optim::Optimizer;
use crate::{Error, Objective, Result, RunDir, TrainState};

/// Version of the manifest written and read here.
const VERSION: u32 = 1;

/// What a checkpoint consists of, written last.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Format of this file.
    version: u32,
    /// The files, in the order they were written.
    files: Vec<Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// A checkpoint in the making.
struct Writer<'a> {
    storage: &'a mut dyn Storage,
    dir: PathBuf,
    files: Vec<Entry>,
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
        self.files.push(Entry { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }

    fn write_text(&mut self, name: &str, text: &str) -> Result<()> {
        self.write(name, &mut std::iter::once(text.as_bytes()))
    }
}

/// Saves a checkpoint `step-N` of a run and removes all but the `keep` newest. Returns its folder.
///
/// # Errors
/// If something cannot be written; what was saved before is untouched.
pub fn save(
    storage: &mut dyn Storage,
    run: &RunDir,
    objective: &dyn Objective,
    optimizer: &dyn Optimizer,
    state: &TrainState,
    keep: usize,
) -> Result<PathBuf> {
    let place = run.checkpoints().join(format!("step-{}", state.step));
    if place.join("manifest.json").is_file() && verify(&place).is_ok() {
        // A run resumed at its end: a run is a pure function of its recipe, so it is all there.
        return Ok(place);
    }
    save_at(storage, &place, objective, optimizer, state)?;
    for old in superfluous(run, state.step, keep) {
        storage.remove_dir(&old).map_err(Error::io("removing", &old))?;
    }
    Ok(place)
}

/// What may go once the checkpoint of `step` is saved: all but the `keep` newest up to it, and what
/// a crash left half written or half removed. Later checkpoints are damaged, or the run would have
/// continued from them; they do not count, and are written anew when their step comes.
fn superfluous(run: &RunDir, step: u64, keep: usize) -> Vec<PathBuf> {
    let whole = list(run);
    let old = whole.iter().rev().filter(|(s, _)| *s <= step).skip(keep.max(1));
    let is_rest = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_partial = name.starts_with(".step-") && name.ends_with(".partial");
        is_partial || (name.starts_with("step-") && !path.join("manifest.json").is_file())
    };
    let entries = std::fs::read_dir(run.checkpoints()).into_iter().flatten();
    let rests = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_rest);
    old.map(|(_, path)| path.clone()).chain(rests).collect()
}

/// Saves a checkpoint in the folder `place`, replacing one that is there.
///
/// # Errors
/// If something cannot be written.
pub fn save_at(
    storage: &mut dyn Storage,
    place: &Path,
    objective: &dyn Objective,
    optimizer: &dyn Optimizer,
    state: &TrainState,
) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let beside = place.with_file_name(format!(".{name}.partial"));
    storage.remove_dir(&beside).map_err(Error::io("removing", &beside))?;
    storage.create_dir(&beside).map_err(Error::io("creating", &beside))?;
    let mut writer = Writer { storage, dir: beside.clone(), files: Vec::new() };
    writer.write_text("config.json", &format!("{:#}\n", objective.config_json()))?;
    writer.write_text("tokenizer.json", &objective.tokenizer().to_json())?;
    for (name, text) in objective.template().map(ChatTemplate::files).unwrap_or_default() {
        writer.write_text(name, &text)?;
    }
    writer.write("model.safetensors", &mut objective.weights()?.parts())?;
    let moments = TensorFile::new(optimizer.state(), &[])?;
    writer.write("optimizer.safetensors", &mut moments.parts())?;
    writer.write_text("state.json", &to_json(state))?;
    let manifest = Manifest { version: VERSION, files: std::mem::take(&mut writer.files) };
    writer.write_text("manifest.json", &to_json(&manifest))?;
    let storage = writer.storage;
    storage.sync_dir(&beside).map_err(Error::io("syncing", &beside))?;
    // What is there is damaged, or else it would not be written again.
    storage.remove_dir(place).map_err(Error::io("removing", place))?;
    storage.rename(&beside, place).map_err(Error::io("renaming", place))?;
    let parent = place.parent().unwrap_or(Path::new("."));
    storage.sync_dir(parent).map_err(Error::io("syncing", parent))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("numbers and text") + "\n"
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The checkpoints of a run that have a manifest, oldest first.
#[must_use]
pub fn list(run: &RunDir) -> Vec<(u64, PathBuf)> {
    let step = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        path.join("manifest.json").is_file().then_some((step, path))
    };
    let dir = std::fs::read_dir(run.checkpoints());
    let mut found: Vec<_> = dir.into_iter().flatten().filter_map(step).collect();
    found.sort();
    found
}

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// If a file is missing or differs.
pub fn verify(dir: &Path) -> Result<()> {
    let fault = |reason: String| Error::Checkpoint { path: dir.to_owned(), reason };
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| fault(format!("manifest.json: {e}")))?;
    if manifest.version != VERSION {
        return Err(fault(format!("its version is {}, expected {VERSION}", manifest.version)));
    }
    for Entry { name, bytes, sha256 } in manifest.files {
        let path = dir.join(&name);
        let contents = std::fs::read(&path).map_err(Error::io("reading", &path))?;
        if contents.len() as u64 != bytes {
            return Err(fault(format!("{name} has {} bytes, expected {bytes}", contents.len())));
        }
        let found = hex(&Sha256::digest(&contents));
        if found != sha256 {
            return Err(fault(format!("{name} has the hash {found}, expected {sha256}")));
        }
    }
    Ok(())
}

/// Loads weights, moments and state of a checkpoint into a run's objective and optimiser.
///
/// # Errors
/// If the checkpoint is damaged or of another model.
pub fn restore(
    dir: &Path,
    objective: &dyn Objective,
    optimizer: &mut dyn Optimizer,
) -> Result<TrainState> {
    let fault = |reason: String| Error::Checkpoint { path: dir.to_owned(), reason };
    let path = dir.join("state.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
    let state: TrainState =
        serde_json::from_str(&text).map_err(|e| fault(format!("state.json: {e}")))?;
    let weights = Checkpoint::open(&dir.join("model.safetensors"))?;
    for param in objective.model().params().params() {
        param.set(&weights.tensor(param.name(), param.shape())?)?;
    }
    let moments = Checkpoint::open(&dir.join("optimizer.safetensors"))?;
    optimizer.restore(&|name, shape| Ok(moments.tensor(name, shape)?))?;
    Ok(state)
}
