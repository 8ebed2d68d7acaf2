//! Storage of runs: writes pass through a trait, so that a test can fail each one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::{Error, Result};

/// The file-system operations of checkpoints and run directories.
pub trait Storage {
    /// Makes a folder and its parents.
    ///
    /// # Errors
    /// The error of the operating system.
    fn create_dir(&mut self, path: &Path) -> io::Result<()>;

    /// Writes a whole file and syncs it.
    ///
    /// # Errors
    /// The error of the operating system.
    fn write(&mut self, path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()>;

    /// Makes the entries of a folder durable.
    ///
    /// # Errors
    /// The error of the operating system.
    fn sync_dir(&mut self, path: &Path) -> io::Result<()>;

    /// Renames a folder or a file.
    ///
    /// # Errors
    /// The error of the operating system.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a folder with its contents. A missing folder is not an error.
    ///
    /// # Errors
    /// The error of the operating system.
    fn remove_dir(&mut self, path: &Path) -> io::Result<()>;
}

/// Makes a folder and its parents, and syncs every folder that got a new entry. So the folder is
/// still there after a power cut, with what is synced in it later.
///
/// # Errors
/// The error of the operating system, with the folder.
pub fn create_dir(storage: &mut dyn Storage, path: &Path) -> Result<()> {
    let new: Vec<&Path> = path.ancestors().take_while(|folder| !is_there(folder)).collect();
    storage.create_dir(path).map_err(Error::io("creating", path))?;
    for folder in new.into_iter().rev() {
        let parent = folder.parent().unwrap_or(Path::new("."));
        storage.sync_dir(parent).map_err(Error::io("syncing", parent))?;
    }
    Ok(())
}

/// The empty path is the current folder.
fn is_there(folder: &Path) -> bool {
    folder.as_os_str().is_empty() || folder.exists()
}

/// Writes a file beside the old one, replaces that and syncs the folder. At any moment either the
/// old or the new contents are complete.
///
/// # Errors
/// The error of the operating system, with the file.
pub fn replace_file(storage: &mut dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let beside = path.with_file_name(name);
    let parent = path.parent().unwrap_or(Path::new("."));
    storage.write(&beside, &mut std::iter::once(bytes)).map_err(Error::io("writing", path))?;
    storage.rename(&beside, path).map_err(Error::io("writing", path))?;
    storage.sync_dir(parent).map_err(Error::io("syncing", parent))
}

/// The file system.
pub struct Disk;

impl Storage for Disk {
    fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn write(&mut self, path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        let mut file = File::create(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        lehr_model::io::sync_dir(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
