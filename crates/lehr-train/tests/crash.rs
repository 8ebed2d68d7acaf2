//! Wherever a crash interrupts the saving of a checkpoint, the run continues from the newest intact
//! one and ends with the bits of an uninterrupted run. Damaged checkpoints are skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::{Watch, checkpoint_bytes, gpt2, prepared, recipe, run_watched};
use lehr_train::checkpoint::{self, Disk, Storage};
use lehr_train::recipe::ObjectiveKind;
use lehr_train::{Recipe, RunDir, run_with_storage};

/// What a crash leaves of the call it hits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// A file has the first half of its bytes; of a folder the first half of its files is gone.
    FirstHalf,
    /// As before, but it is the last half of the files that is gone.
    LastHalf,
    /// The whole call, but the program crashed before it returned.
    Done,
}

/// The file system of a machine that crashes in one of its calls.
struct Crash {
    n_calls: usize,
    at: usize,
    left: Left,
}

impl Crash {
    fn new(at: usize, left: Left) -> Self {
        Self { n_calls: 0, at, left }
    }

    /// Runs `whole` before the crash, `part` at it, and nothing after.
    fn call(
        &mut self,
        whole: impl FnOnce() -> io::Result<()>,
        part: impl FnOnce(Left) -> io::Result<()>,
    ) -> io::Result<()> {
        let index = self.n_calls;
        self.n_calls += 1;
        if index < self.at {
            return whole();
        }
        if index == self.at {
            match self.left {
                Left::Done => whole()?,
                left => part(left)?,
            }
        }
        Err(io::Error::other("the machine crashed"))
    }
}

impl Storage for Crash {
    fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        self.call(|| Disk.create_dir(path), |_| Ok(()))
    }

    fn write(&mut self, path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        let bytes = parts.collect::<Vec<_>>().concat();
        let half = bytes.len() / 2;
        self.call(|| fs::write(path, &bytes), |_| fs::write(path, &bytes[..half]))
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.call(|| Disk.sync_dir(path), |_| Ok(()))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|| Disk.rename(from, to), |_| Ok(()))
    }

    fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        self.call(|| Disk.remove_dir(path), |left| remove_half(path, left))
    }
}

fn remove_half(path: &Path, left: Left) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    let mut files: Vec<_> = entries.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
    files.sort();
    if left == Left::LastHalf {
        files.reverse();
    }
    files.iter().take(files.len().div_ceil(2)).try_for_each(fs::remove_file)
}

/// A file system that knows what a power cut would lose: files and folders that were made or
/// renamed since their folder was synced.
#[derive(Default)]
struct Durable {
    unsynced: BTreeSet<PathBuf>,
}

impl Storage for Durable {
    fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let new = path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned);
        self.unsynced.extend(new);
        Disk.create_dir(path)
    }

    fn write(&mut self, path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        self.unsynced.insert(path.to_owned());
        Disk.write(path, parts)
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.unsynced.retain(|entry| entry.parent() != Some(path));
        Disk.sync_dir(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.unsynced.remove(from);
        self.unsynced.insert(to.to_owned());
        Disk.rename(from, to)
    }

    fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        self.unsynced.retain(|entry| !entry.starts_with(path));
        Disk.remove_dir(path)
    }
}

#[test]
fn a_power_cut_loses_neither_the_run_directory_nor_a_saved_step() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    recipe.run.dir = scratch.path().join("runs/of/today").display().to_string();
    let (mut task, mut storage) = (prepared(&recipe), Durable::default());
    let dir = RunDir::open_with_storage(&recipe, &mut storage).unwrap();
    assert!(storage.unsynced.is_empty(), "would be lost: {:?}", storage.unsynced);
    let mut watch = Watch { stop_after: Some(2), ..Watch::default() };
    let stop = std::sync::Arc::clone(&watch.stop);
    run_with_storage(&recipe, &mut task, Some(&dir), &mut storage, &mut watch, &stop).unwrap();
    assert_eq!(watch.saved.len(), 1);
    assert!(storage.unsynced.is_empty(), "would be lost: {:?}", storage.unsynced);
}

#[test]
fn a_crash_while_the_run_directory_is_made_leaves_one_that_can_be_opened() {
    let scratch = tempfile::tempdir().unwrap();
    let base = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    let mut calls = Crash::new(usize::MAX, Left::Done);
    drop(RunDir::open_with_storage(&in_dir(&base, "whole"), &mut calls).unwrap());
    assert!(calls.n_calls >= 6, "only {} calls", calls.n_calls);
    for at in 0..calls.n_calls {
        for left in [Left::FirstHalf, Left::Done] {
            let recipe = in_dir(&base, &format!("crash-{at}-{left:?}"));
            let crashed = RunDir::open_with_storage(&recipe, &mut Crash::new(at, left));
            assert!(crashed.is_err(), "call {at}, {left:?}");
            let dir = RunDir::open(&recipe).unwrap();
            let text = fs::read_to_string(dir.recipe()).unwrap();
            assert_eq!(text, recipe.to_toml(), "call {at}, {left:?}");
        }
    }
}

/// A recipe with its own run directory and the data of `base`.
fn in_dir(base: &Recipe, name: &str) -> Recipe {
    let mut recipe = base.clone();
    recipe.run.dir = base.dir().with_file_name(name).display().to_string();
    recipe
}

/// What is in the folder of the checkpoints.
fn entries(recipe: &Recipe) -> Vec<String> {
    let entries = fs::read_dir(recipe.dir().join("checkpoints")).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Steps of the checkpoints that are whole.
fn whole_steps(recipe: &Recipe) -> Vec<u64> {
    let found = checkpoint::list(&RunDir::open(recipe).unwrap());
    found.into_iter().filter(|(_, dir)| checkpoint::verify(dir).is_ok()).map(|(s, _)| s).collect()
}

/// Runs until the crash; gives what was seen before it, and the number of calls.
fn run_until_crash(recipe: &Recipe, crash: &mut Crash) -> (Watch, bool) {
    let (mut task, dir) = (prepared(recipe), RunDir::open(recipe).unwrap());
    let (mut watch, stop) = (Watch::default(), AtomicBool::new(false));
    let outcome = run_with_storage(recipe, &mut task, Some(&dir), crash, &mut watch, &stop);
    if let Err(error) = &outcome {
        let text = error.to_string();
        assert!(text.contains("the machine crashed") && text.contains(&recipe.run.dir), "{text}");
    }
    (watch, outcome.is_err())
}

fn step_of(path: &Path) -> u64 {
    path.file_name().unwrap().to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap()
}

#[test]
fn a_crash_in_any_call_of_saving_loses_no_saved_step_and_changes_no_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let mut base = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    base.train.batch_size = 2;
    base.checkpoint.keep = 1;
    let whole = in_dir(&base, "whole");
    let mut calls = Crash::new(usize::MAX, Left::Done);
    assert!(!run_until_crash(&whole, &mut calls).1);
    let want = checkpoint_bytes(&whole, 6);
    assert_eq!(entries(&whole), ["step-6"]);
    // Three checkpoints of a folder, six files, three syncs and so on.
    assert!(calls.n_calls >= 36, "only {} calls", calls.n_calls);
    for at in 0..calls.n_calls {
        for left in [Left::FirstHalf, Left::LastHalf, Left::Done] {
            let case = format!("call {at}, {left:?}");
            let run = in_dir(&base, &format!("crash-{at}-{left:?}"));
            let (before, crashed) = run_until_crash(&run, &mut Crash::new(at, left));
            assert!(crashed, "{case}: no error");
            let newest = whole_steps(&run).last().copied().unwrap_or(0);
            let saved = before.saved.last().map_or(0, |path| step_of(path));
            assert!(newest >= saved, "{case}: step {saved} was saved, {newest} is left");
            let (_, after) = run_watched(&run, Watch::default());
            assert_eq!(after.started, Some(newest), "{case}");
            assert!(checkpoint_bytes(&run, 6) == want, "{case}: the final bits differ");
            // A run that had only its tidying left is finished; any other leaves nothing behind.
            let left_behind = entries(&run).len() - 1;
            assert!(left_behind == 0 || newest == 6 && left_behind == 1, "{case}: {left_behind}");
            fs::remove_dir_all(run.dir()).unwrap();
        }
    }
}

/// A run with checkpoints of steps 4 and 6, and the bits of the latter.
fn finished_run(scratch: &Path) -> (Recipe, [Vec<u8>; 2]) {
    let mut recipe = recipe(scratch, gpt2(16), ObjectiveKind::NextToken);
    recipe.train.batch_size = 2;
    run_watched(&recipe, Watch::default());
    assert_eq!(whole_steps(&recipe), [4, 6]);
    let bytes = checkpoint_bytes(&recipe, 6);
    (recipe, bytes)
}

fn checkpoint_dir(recipe: &Recipe, step: u64) -> PathBuf {
    recipe.dir().join(format!("checkpoints/step-{step}"))
}

const FILES: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
];

/// Continues the run and checks that it passed over step 6 and made it again.
fn continues_from_step_4(recipe: &Recipe, want: &[Vec<u8>; 2], case: &str) {
    let (_, watch) = run_watched(recipe, Watch::default());
    assert_eq!(watch.started, Some(4), "{case}");
    let [(path, reason)] = watch.skipped.as_slice() else {
        panic!("{case}: skipped {:?}", watch.skipped)
    };
    assert_eq!(step_of(path), 6, "{case}");
    assert!(!reason.is_empty(), "{case}");
    assert!(checkpoint_bytes(recipe, 6) == *want, "{case}: the final bits differ");
    assert_eq!(whole_steps(recipe), [4, 6], "{case}");
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, want) = finished_run(scratch.path());
    for name in FILES {
        let path = checkpoint_dir(&recipe, 6).join(name);
        for from_end in [false, true] {
            let mut bytes = fs::read(&path).unwrap();
            let at = if from_end { bytes.len() - 3 } else { bytes.len() / 3 };
            bytes[at] ^= 0x02;
            fs::write(&path, bytes).unwrap();
            continues_from_step_4(&recipe, &want, &format!("{name}, byte {at}"));
        }
    }
}

#[test]
fn a_checkpoint_with_a_cut_or_missing_file_is_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, want) = finished_run(scratch.path());
    for name in FILES {
        let path = checkpoint_dir(&recipe, 6).join(name);
        let bytes = fs::read(&path).unwrap();
        for len in [0, bytes.len() / 2, bytes.len() - 1] {
            // The manifest's last byte is a line break that nothing needs.
            if name == "manifest.json" && len == bytes.len() - 1 {
                continue;
            }
            fs::write(&path, &bytes[..len]).unwrap();
            continues_from_step_4(&recipe, &want, &format!("{name} cut to {len} bytes"));
        }
        // Without its manifest a folder is no checkpoint at all.
        if name != "manifest.json" {
            fs::remove_file(&path).unwrap();
            continues_from_step_4(&recipe, &want, &format!("{name} removed"));
        }
    }
}

#[test]
fn a_manifest_of_another_version_is_not_trusted() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, want) = finished_run(scratch.path());
    let path = checkpoint_dir(&recipe, 6).join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let other = text.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(other, text);
    fs::write(&path, other).unwrap();
    continues_from_step_4(&recipe, &want, "version 2");
}

#[test]
fn with_all_checkpoints_damaged_the_run_begins_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (recipe, want) = finished_run(scratch.path());
    for step in [4, 6] {
        fs::write(checkpoint_dir(&recipe, step).join("state.json"), "{}").unwrap();
    }
    let (_, watch) = run_watched(&recipe, Watch::default());
    assert_eq!((watch.started, watch.skipped.len()), (Some(0), 2));
    assert!(checkpoint_bytes(&recipe, 6) == want);
}

#[test]
fn a_damaged_later_checkpoint_does_not_push_out_what_is_saved_now() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut recipe, want) = finished_run(scratch.path());
    recipe.checkpoint.keep = 1;
    fs::write(recipe.dir().join("recipe.toml"), recipe.to_toml()).unwrap();
    fs::write(checkpoint_dir(&recipe, 6).join("state.json"), "{}").unwrap();
    let stopped = Watch { stop_after: Some(5), ..Watch::default() };
    let (_, first) = run_watched(&recipe, stopped);
    assert_eq!(first.started, Some(4));
    let (_, second) = run_watched(&recipe, Watch::default());
    assert_eq!(second.started, Some(5), "the checkpoint of the interrupted run is gone");
    assert!(checkpoint_bytes(&recipe, 6) == want);
}
