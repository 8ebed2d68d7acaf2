//! Files that the user names with `--output` or `--out`: written beside their name, and renamed
//! when they are complete.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fail::Hinted;

/// An output file. What the name held before stays until [`Output::finish`].
pub(crate) struct Output {
    path: PathBuf,
    /// The file that is written; `None` if `path` is a pipe or a device, which is written itself.
    beside: Option<PathBuf>,
    file: File,
}

impl Output {
    /// Creates the file beside `path`, under a name that is not in use. `read` are the files and
    /// folders that the command reads, as in [`check`].
    pub(crate) fn create(path: &Path, read: &[&Path]) -> Result<Self> {
        check(path, read)?;
        let writing = || format!("writing {}", path.display());
        // A link stays, and the file that it names is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if target.exists() && !target.is_file() {
            let file = File::options().write(true).open(&target).with_context(writing)?;
            return Ok(Self { path: target, beside: None, file });
        }
        let mut n = 1;
        loop {
            let beside = beside(&target, n);
            match File::create_new(&beside) {
                Ok(file) => return Ok(Self { path: target, beside: Some(beside), file }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => n += 1,
                Err(error) => return Err(error).with_context(writing),
            }
        }
    }

    /// Returns where the results are until [`Output::finish`].
    pub(crate) fn place(&self) -> &Path {
        self.beside.as_deref().unwrap_or(&self.path)
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(beside) = &self.beside else { return Ok(()) };
        let renamed = self.file.sync_all().and_then(|()| fs::rename(beside, &self.path));
        renamed.with_context(|| {
            format!("writing {}; the results are in {}", self.path.display(), beside.display())
        })
    }

    /// Removes the file beside.
    pub(crate) fn discard(self) {
        if let Some(beside) = &self.beside {
            let _ = fs::remove_file(beside);
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Returns the name of the `n`-th file beside `path`.
fn beside(path: &Path, n: usize) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    if n > 1 {
        name.push(format!("-{n}"));
    }
    path.with_file_name(name)
}

/// Checks that an output replaces no file that the command reads: none of `read`, and no file in a
/// folder among them, under whatever name.
pub(crate) fn check(output: &Path, read: &[&Path]) -> Result<()> {
    if output.is_dir() {
        let found = format!("the output {} is a folder, expected a file", output.display());
        return Err(Hinted::error(found, "give a name for a file in it"));
    }
    // A file that is not there yet is none of them.
    let Some(id) = identity(output) else { return Ok(()) };
    match read.iter().find_map(|path| find(path, &id)) {
        None => Ok(()),
        Some(path) => {
            let found = format!("the output {} would overwrite what is read", path.display());
            Err(Hinted::error(found, "give the output a name of its own"))
        }
    }
}

/// Looks for a file in `path` and the folders below it.
fn find(path: &Path, id: &Identity) -> Option<PathBuf> {
    if identity(path).as_ref() == Some(id) {
        return Some(path.to_owned());
    }
    // A link to a folder is not followed, because it may lead back.
    if !path.is_dir() {
        return None;
    }
    let entries = fs::read_dir(path).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| match path.is_symlink() && path.is_dir() {
        true => None,
        false => find(&path, id),
    })
}

#[cfg(unix)]
type Identity = (u64, u64);

/// Returns the device and the number of a file. Names and links of one file share them.
#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    // Devices and pipes hold nothing that could be lost.
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((found.dev(), found.ino()))
}

#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<Identity> {
    fs::canonicalize(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_stays_until_the_new_one_is_complete() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("out.jsonl");
        fs::write(&path, "precious").unwrap();
        let partial = scratch.path().join("out.jsonl.partial");
        fs::write(&partial, "of an earlier run").unwrap();
        let mut output = Output::create(&path, &[]).unwrap();
        output.write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(output.place().ends_with("out.jsonl.partial-2"));
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_to_string(&partial).unwrap(), "of an earlier run");
        Output::create(&path, &[]).unwrap().discard();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_read_is_never_replaced_under_any_name() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("model/1_Pooling")).unwrap();
        fs::write(at("model/model.safetensors"), "weights").unwrap();
        fs::write(at("model/1_Pooling/config.json"), "{}").unwrap();
        fs::write(at("in.jsonl"), "{}").unwrap();
        std::os::unix::fs::symlink(at("model/model.safetensors"), at("soft")).unwrap();
        fs::hard_link(at("in.jsonl"), at("hard.jsonl")).unwrap();
        let read = [at("in.jsonl"), at("model")];
        let read: Vec<&Path> = read.iter().map(PathBuf::as_path).collect();
        for name in
            ["in.jsonl", "hard.jsonl", "soft", "model/1_Pooling/config.json", "model/../in.jsonl"]
        {
            let error = check(&at(name), &read).unwrap_err().to_string();
            assert!(error.contains("would overwrite what is read"), "{name}: {error}");
        }
        assert!(check(&at("model"), &[]).unwrap_err().to_string().contains("is a folder"));
        check(&at("new.jsonl"), &read).unwrap();
        check(Path::new("/dev/null"), &read).unwrap();
        // A link keeps what it is.
        std::os::unix::fs::symlink(at("in.jsonl"), at("link.jsonl")).unwrap();
        Output::create(&at("link.jsonl"), &[]).unwrap().finish().unwrap();
        assert!(at("link.jsonl").is_symlink() && fs::read(at("in.jsonl")).unwrap().is_empty());
        assert!(Output::create(Path::new("/dev/null"), &[]).unwrap().beside.is_none());
    }
}
