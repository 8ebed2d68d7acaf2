//! All writes of checkpoints go through here, so that a test can crash each of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// What a checkpoint needs of a file system.
pub trait Storage {
    /// Makes a folder and its parents.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&mut self, path: &Path) -> io::Result<()>;

    /// Writes a whole file and syncs it.
    ///
    /// # Errors
    /// What the system says.
    fn write(&mut self, path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()>;

    /// Makes the entries of a folder durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&mut self, path: &Path) -> io::Result<()>;

    /// Renames a folder.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a folder with all in it; a missing one is no error.
    ///
    /// # Errors
    /// What the system says.
    fn remove_dir(&mut self, path: &Path) -> io::Result<()>;
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
        // Folders can be synced on Unix only; elsewhere the rename itself is what there is.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
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
