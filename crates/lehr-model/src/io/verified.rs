//! Memory of verified checkpoints, so that a model is not hashed each time it is opened.
//!
//! The memory is a file per checkpoint in the user's cache. A failure to read or write it only
//! means that files are hashed again.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::hex;

/// Two writes within this time may leave the same time stamp, on file systems with coarse clocks.
/// Files written so recently are not remembered.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// Files are hashed again after this time, because a failing disk changes bytes but no time stamp.
const REMEMBERED: Duration = Duration::from_hours(24);

/// The sizes, times and inodes of a checkpoint's files at one moment.
pub(super) struct FilesState {
    /// Name of the folder's entry in the cache.
    entry: String,
    /// Hash of all sizes, times and inodes.
    identity: String,
    newest: SystemTime,
}

impl FilesState {
    /// Reads the state of the files `names` in `dir`; `None` if the system does not give all of it.
    pub(super) fn of<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let dir = std::fs::canonicalize(dir).ok()?;
        let (mut hash, mut newest) = (Sha256::new(), SystemTime::UNIX_EPOCH);
        for name in names {
            let metadata = std::fs::metadata(dir.join(name)).ok()?;
            newest = newest.max(metadata.modified().ok()?);
            hash.update(format!("{name}\n{:?}\n", identity(&metadata)?));
        }
        let entry = hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes()));
        Some(Self { entry, identity: hex(&hash.finalize()), newest })
    }
}

/// Numbers that change when a file is written or replaced. The time of the last change of the inode
/// cannot be set by programs that preserve time stamps.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<[i128; 5]> {
    use std::os::unix::fs::MetadataExt;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        metadata.dev().into(),
        metadata.ino().into(),
        metadata.len().into(),
        nanos(metadata.mtime(), metadata.mtime_nsec()),
        nanos(metadata.ctime(), metadata.ctime_nsec()),
    ])
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<[i128; 5]> {
    None
}

/// Returns the folder of the memory: in `LEHR_CACHE`, or in `lehr` in the user's cache, as for
/// compiled kernels.
pub(super) fn cache() -> PathBuf {
    let of = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = of("LEHR_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|dir| dir.join("lehr")))
        .or_else(|| of("HOME").map(|dir| dir.join(".cache/lehr")))
        .unwrap_or_else(|| std::env::temp_dir().join("lehr"));
    cache.join("verified")
}

/// Returns whether files in this state passed the check within the last day.
pub(super) fn is_known(cache: &Path, state: &FilesState) -> bool {
    let path = cache.join(&state.entry);
    let written = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
    let is_fresh = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < REMEMBERED));
    is_fresh && std::fs::read_to_string(&path).is_ok_and(|text| text == state.identity)
}

/// Remembers that files passed the check. `state` was read before they were hashed.
pub(super) fn remember(cache: &Path, state: &FilesState) {
    if state.newest.elapsed().is_ok_and(|age| age > CLOCK_TICK)
        && std::fs::create_dir_all(cache).is_ok()
    {
        let _ = super::write_file(&cache.join(&state.entry), state.identity.as_bytes());
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::{self, File};

    use super::*;

    fn set_age(path: &Path, age: Duration) {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(SystemTime::now() - age)
            .unwrap();
    }

    #[test]
    fn only_files_that_are_unchanged_for_a_while_are_remembered_and_only_for_a_day() {
        let scratch = tempfile::tempdir().unwrap();
        let (cache, file) = (scratch.path().join("cache"), scratch.path().join("model"));
        let state = || FilesState::of(scratch.path(), ["model"].into_iter()).unwrap();
        fs::write(&file, "weights").unwrap();
        remember(&cache, &state());
        assert!(!is_known(&cache, &state()), "a file written just now was remembered");

        let minute = Duration::from_secs(60);
        set_age(&file, minute);
        remember(&cache, &state());
        assert!(is_known(&cache, &state()));
        set_age(&cache.join(state().entry), REMEMBERED + minute);
        assert!(!is_known(&cache, &state()), "it was remembered for more than a day");
        remember(&cache, &state());
        assert!(is_known(&cache, &state()));

        // Other bytes under the old size and modification time, as a program may set it.
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "weighed").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        assert!(!is_known(&cache, &state()), "a changed file was taken for the old one");
    }

    #[test]
    fn a_file_that_is_missing_has_no_state() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(FilesState::of(scratch.path(), ["model"].into_iter()).is_none());
    }
}
