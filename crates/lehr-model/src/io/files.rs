//! Reading and writing whole files with errors that name them.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// Reads a JSON file.
///
/// # Errors
/// If it is missing or not JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io("reading", path))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not JSON: {e}")))
}

/// Writes a JSON file with indentation.
///
/// # Errors
/// If it cannot be written.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// Makes the entries of a folder durable: after a power cut, files created or renamed in it before
/// are still there. Only Unix can sync a folder, and some file systems cannot.
///
/// # Errors
/// The error of the operating system.
pub fn sync_dir(path: &Path) -> std::io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    // An empty path is what `Path::parent` returns for a name without a folder.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match File::open(path)?.sync_all() {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Writes a temporary file, syncs it, renames it and syncs the folder. At any moment either the old
/// or the new contents are complete.
///
/// # Errors
/// If it cannot be written. The old file is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_parts(path, std::iter::once(bytes))
}

/// Writes like [`write_file`], from several pieces.
///
/// # Errors
/// If it cannot be written. The old file is then untouched.
pub fn write_parts<'a>(path: &Path, parts: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    write_stream(path, |out| {
        let mut parts = parts;
        parts.try_for_each(|part| out.write_all(part)).map_err(Error::io("writing", path))
    })
}

/// Writes like [`write_file`], with contents produced while writing.
///
/// # Errors
/// If they cannot be produced or written. The old file is then untouched.
pub fn write_stream(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let beside = path.with_file_name(name);
    let whole = || {
        let mut file = File::create(&beside).map_err(Error::io("writing", path))?;
        write(&mut file)?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&beside, path))
            .and_then(|()| sync_dir(path.parent().unwrap_or(Path::new("."))))
            .map_err(Error::io("writing", path))
    };
    whole().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}
