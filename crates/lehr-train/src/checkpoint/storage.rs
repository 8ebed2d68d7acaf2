//! Storage of checkpoints: every write passes through a trait, so that a test can fail each one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The file-system operations of a checkpoint.
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

    /// Renames a folder.
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
        // Only Unix can sync a folder. Elsewhere the rename must suffice.
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
