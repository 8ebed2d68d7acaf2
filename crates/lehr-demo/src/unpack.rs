//! Writing the bundled files to a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ENTRIES, Error, Result};

/// Distinguishes the temporary files of threads in one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes all bundled files below `dir` and creates `dir` if needed.
///
/// Each file is written under a temporary name and renamed, so nobody sees half a file. A file with
/// the right content stays; one with other content is replaced.
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
            // Removes the rest of the failed attempt. If that fails too, the first error counts.
            let _ = fs::remove_file(&unfinished);
            failed(&path, e)
        })?;
    }
    Ok(())
}

/// Whether the file exists with this content. Compares sizes first, which is cheap.
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
