//! Checkpoints that hold only trained weights and refer to a base model for the rest.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{Manifest, ManifestFile, hex};
use super::weight_files::WeightFiles;
use crate::{Error, Result};

/// File name of the reference in a checkpoint's folder.
pub const BASE: &str = "base.json";

/// The base model of a checkpoint without all weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// Its folder or file.
    pub path: PathBuf,
    /// SHA-256 of the list of its weight files, one line `HASH  NAME` each, as `sha256sum` writes
    /// it.
    pub sha256: String,
}

impl BaseModel {
    /// Refers to the model in `path`, a folder or a file.
    ///
    /// # Errors
    /// If it holds no weights or cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(path).map_err(Error::io("opening", path))?;
        let sha256 = hash_of_weights(&path)?;
        Ok(Self { path, sha256 })
    }

    /// Reads the reference of the checkpoint in `dir`; `None` if the checkpoint holds all weights.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(BASE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        serde_json::from_str(&text).map(Some).map_err(|e| Error::format(&path, e.to_string()))
    }

    /// Returns the path of the base of the checkpoint in `dir`, which must be unchanged; `None` if
    /// the checkpoint holds all weights.
    ///
    /// # Errors
    /// If the reference is damaged, or the base is missing or has changed.
    pub fn checked(dir: &Path) -> Result<Option<PathBuf>> {
        let Some(base) = Self::read(dir)? else { return Ok(None) };
        base.check(dir)?;
        Ok(Some(base.path))
    }

    /// Checks that the base of the checkpoint in `dir` is unchanged.
    pub(super) fn check(&self, dir: &Path) -> Result<()> {
        let refused = |reason: String| Error::Format {
            path: dir.join(BASE),
            reason,
            hint: Some(format!(
                "the checkpoint holds only what was trained: put the base it was trained on back \
                 to {}, or correct the path in {BASE}",
                self.path.display()
            )),
        };
        let path = self.path.display();
        if !self.path.exists() {
            return Err(refused(format!("the base model {path} is not there")));
        }
        let found = hash_of_weights(&self.path)?;
        if found != self.sha256 {
            let expected = &self.sha256;
            let reason =
                format!("the base model {path} has changed: its hash is {found}, not {expected}");
            return Err(refused(reason));
        }
        Ok(())
    }
}

/// Computes the hash of the model in `path`.
fn hash_of_weights(path: &Path) -> Result<String> {
    let mut files = WeightFiles::find(path)?.paths;
    files.extend(Some(path.join(BASE)).filter(|base| base.is_file()));
    let mut list = Sha256::new();
    for ManifestFile { name, sha256, .. } in hash_files(path, &files)? {
        list.update(format!("{sha256}  {name}\n"));
    }
    Ok(hex(&list.finalize()))
}

/// Files of a model besides its weights that change what is computed or how texts are rendered. The
/// tokenizer's files are not among them: a tokenizer has its own hash.
const SETTINGS: [&str; 5] =
    ["config.json", BASE, "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];

/// Hashes the files of the model in `path`, a folder or a file: its weights, its configuration and
/// its chat template.
///
/// # Errors
/// If there are no weights or a file cannot be read.
pub fn model_files(path: &Path) -> Result<Vec<ManifestFile>> {
    let mut files = WeightFiles::find(path)?.paths;
    files.extend(SETTINGS.iter().map(|name| path.join(name)).filter(|file| file.is_file()));
    hash_files(path, &files)
}

/// Hashes files of the model in `path`. It uses the hashes of a manifest if the files match it.
fn hash_files(path: &Path, files: &[PathBuf]) -> Result<Vec<ManifestFile>> {
    let manifest = Manifest::read(path).ok().filter(|m| m.verify_once(path).is_ok());
    let hashed = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = manifest.iter().flat_map(|m| &m.files).find(|known| known.name == name);
        match known {
            Some(known) => Ok(known.clone()),
            None => ManifestFile::of(file, name),
        }
    };
    files.iter().map(hashed).collect()
}
