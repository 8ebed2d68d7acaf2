//! The manifest of a run's checkpoint, and the search for the newest complete checkpoint.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::verified::{self, FilesState};
use crate::{Error, Result};

/// Version of the manifest written and read here.
const VERSION: u32 = 1;

/// The name of the manifest in a checkpoint's folder.
pub const MANIFEST: &str = "manifest.json";

/// The files of a checkpoint with their sizes and SHA-256 hashes. It is written last: a folder
/// without one is incomplete.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// The files, in the order they were written.
    pub files: Vec<ManifestFile>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash, in hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Creates the manifest of these files.
    #[must_use]
    pub fn new(files: Vec<ManifestFile>) -> Self {
        Self { version: VERSION, files }
    }

    /// Reads the manifest of the checkpoint in `dir`.
    ///
    /// # Errors
    /// If it is missing, damaged or of another version.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        let manifest: Self =
            serde_json::from_str(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        if manifest.version != VERSION {
            let reason = format!("its version is {}, expected {VERSION}", manifest.version);
            return Err(Error::format(&path, reason));
        }
        Ok(manifest)
    }

    /// Checks that every file is there and has its size.
    ///
    /// # Errors
    /// If a file is missing or has another size.
    pub fn check_sizes(&self, dir: &Path) -> Result<()> {
        for ManifestFile { name, bytes, .. } in &self.files {
            let path = dir.join(name);
            let found = std::fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
            if found != *bytes {
                let reason = format!("it is damaged: it has {found} bytes, expected {bytes}");
                return Err(Error::format(&path, reason));
            }
        }
        Ok(())
    }

    /// Checks the contents of every file. It reads all of them, in blocks.
    ///
    /// # Errors
    /// If a file is missing or differs.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        self.check_sizes(dir)?;
        for file in &self.files {
            let path = dir.join(&file.name);
            let found = hash_file(&path)?;
            if found != file.sha256 {
                return Err(file.damaged(&path, &found));
            }
        }
        Ok(())
    }

    /// Checks as [`Manifest::verify`], but does not hash files again that passed within the last
    /// day and have not been written since: their sizes, times and inodes are remembered in the
    /// user's cache.
    ///
    /// # Errors
    /// If a file is missing or differs.
    pub fn verify_once(&self, dir: &Path) -> Result<()> {
        self.check_sizes(dir)?;
        let Some(state) = self.state(dir) else { return self.verify(dir) };
        let cache = verified::cache();
        if verified::is_known(&cache, &state) {
            return Ok(());
        }
        self.verify(dir)?;
        verified::remember(&cache, &state);
        Ok(())
    }

    /// Returns the number of bytes that [`Manifest::verify_once`] would hash now: all or none.
    #[must_use]
    pub fn bytes_to_hash(&self, dir: &Path) -> u64 {
        match self.state(dir) {
            Some(state) if verified::is_known(&verified::cache(), &state) => 0,
            _ => self.files.iter().map(|file| file.bytes).sum(),
        }
    }

    fn state(&self, dir: &Path) -> Option<FilesState> {
        let names = self.files.iter().map(|file| file.name.as_str());
        FilesState::of(dir, names.chain([MANIFEST]))
    }
}

impl ManifestFile {
    /// Measures and hashes the file at `path`, and lists it as `name`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of(path: &Path, name: String) -> Result<Self> {
        let bytes = std::fs::metadata(path).map_err(Error::io("reading", path))?.len();
        Ok(Self { name, bytes, sha256: hash_file(path)? })
    }

    fn damaged(&self, path: &Path, found: &str) -> Error {
        Error::Format {
            path: path.to_owned(),
            reason: format!(
                "it is damaged or was changed: its SHA-256 hash is {found}, expected {}",
                self.sha256
            ),
            hint: Some(format!(
                "use another checkpoint; if you changed the file on purpose, copy the folder \
                 without {MANIFEST} and use the copy"
            )),
        }
    }
}

/// Computes the SHA-256 hash of a file in hexadecimal digits, reading in blocks.
///
/// # Errors
/// If the file cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    const BLOCK: usize = 1 << 20;
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block).map_err(Error::io("reading", path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}

/// Formats bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Lists the checkpoints of a run directory that have a manifest, with their steps, oldest first.
#[must_use]
pub fn checkpoints(run: &Path) -> Vec<(u64, PathBuf)> {
    let step = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        path.join(MANIFEST).is_file().then_some((step, path))
    };
    let dir = std::fs::read_dir(run.join("checkpoints"));
    let mut found: Vec<_> = dir.into_iter().flatten().filter_map(step).collect();
    found.sort();
    found
}

/// The depth of a checkpoint's check. All files must exist with their sizes and hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// Hashes every file, except those that passed lately ([`Manifest::verify_once`]). Using a
    /// model requires this.
    Remembered,
    /// Hashes every file. Resuming a run requires this.
    Hashes,
}

/// Checks the files of the checkpoint in `dir`.
///
/// # Errors
/// If its manifest or a file is missing or damaged.
pub fn check_checkpoint(dir: &Path, scrutiny: Scrutiny) -> Result<()> {
    let manifest = Manifest::read(dir)?;
    match scrutiny {
        Scrutiny::Remembered => manifest.verify_once(dir),
        Scrutiny::Hashes => manifest.verify(dir),
    }
}

/// Finds the newest complete checkpoint of a run directory. It reports newer incomplete ones to
/// `on_damaged`. All readers of a run's newest checkpoint call this.
#[must_use]
pub fn newest_checkpoint(
    run: &Path,
    scrutiny: Scrutiny,
    on_damaged: &mut dyn FnMut(&Path, &Error),
) -> Option<(u64, PathBuf)> {
    checkpoints(run).into_iter().rev().find(|(_, dir)| {
        check_checkpoint(dir, scrutiny).inspect_err(|error| on_damaged(dir, error)).is_ok()
    })
}
