//! Writing the bundled files to a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ENTRIES, Error, Result};

/// Tells apart the unfinished files of threads of one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes all bundled files below `dir`, which is made if it does not exist.
///
/// Each file is written beside its place and renamed, so that nobody ever sees half a file. A file
/// that has the right content already is left alone; one with another content is replaced.
///
/// # Errors
/// If a file or folder cannot be written, or the program file is damaged.
pub fn unpack(dir: impl AsRef<Path>) -> Result<()> {
    for entry in ENTRIES {
        let path = dir.as_ref().join(entry.path);
        let content = entry.content()?;
        if has_content(&path, &content) {
            continue;
        }
        let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(dir.as_ref());
        fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let unfinished = beside(&path);
        let written =
            fs::write(&unfinished, &content).and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|e| {
            // What is left of the failed attempt; if it cannot be removed, the first error counts.
            let _ = fs::remove_file(&unfinished);
            failed(&path, e)
        })?;
    }
    Ok(())
}

/// Whether the file exists with this content. The size is asked first, because it is free.
fn has_content(path: &Path, content: &[u8]) -> bool {
    let same_size = fs::metadata(path).is_ok_and(|m| m.len() == content.len() as u64);
    same_size && fs::read(path).is_ok_and(|found| found == content)
}

fn beside(path: &Path) -> PathBuf {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{n}.part", process::id()));
    PathBuf::from(name)
}
