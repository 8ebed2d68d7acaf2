//! A place for files until they are complete.

use std::fs;
use std::path::{Path, PathBuf};

use super::io;
use crate::{Error, Result};

/// A folder beside a target. It disappears when it is dropped, with all that was not moved to the
/// target.
pub(super) struct Beside {
    dir: PathBuf,
    target: PathBuf,
}

/// Returns the folder in which [`convert`](super::convert) writes until the copy is proven.
#[must_use]
pub fn partial(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.partial"))
}

/// Removes what an interrupted conversion to `target` left.
pub fn remove_partial(target: &Path) -> std::io::Result<()> {
    let path = partial(target);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
        Err(_) => Ok(()),
    }
}

impl Beside {
    /// Creates the folder. It replaces the remains of an interrupted conversion.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let dir = partial(target);
        if target.file_name().is_none() {
            return Err(Error::TargetExists { path: target.to_owned() });
        }
        remove_partial(target).map_err(io("removing", &dir))?;
        fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
        Ok(Self { dir, target: target.to_owned() })
    }

    /// Returns the path at which the copy is written.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(self.target.file_name().unwrap_or_default())
    }

    /// Moves the copy to the target.
    pub(super) fn finish(self) -> Result<()> {
        // A rename would replace a file that has appeared meanwhile.
        if fs::symlink_metadata(&self.target).is_ok() {
            return Err(Error::TargetExists { path: self.target.clone() });
        }
        fs::rename(self.path(), &self.target).map_err(io("renaming", &self.path()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
