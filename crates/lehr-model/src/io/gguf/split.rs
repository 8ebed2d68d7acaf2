//! GGUF files in several parts, as `llama-gguf-split` writes them.

use std::path::{Path, PathBuf};

use super::reader::{self, Header};
use crate::{Error, Result};

/// Returns all parts of the file at `path`, from its name `NAME-00001-of-00003.gguf`, or the file
/// itself.
pub(crate) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let Some((stem, n)) = name_of_part(path) else { return Ok(vec![path.to_owned()]) };
    let part = |i: usize| path.with_file_name(format!("{stem}-{i:05}-of-{n:05}.gguf"));
    let all: Vec<PathBuf> = (1..=n).map(part).collect();
    let missing: Vec<_> = all.iter().filter(|path| !path.is_file()).collect();
    if missing.is_empty() {
        return Ok(all);
    }
    let name =
        |path: &&PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<_> = missing.iter().take(4).map(name).collect();
    Err(Error::Format {
        path: path.to_owned(),
        reason: format!(
            "the model is split into {n} files, of which {} are missing: {}",
            missing.len(),
            names.join(", ")
        ),
        hint: Some("copy or download the missing files into the same folder".to_owned()),
    })
}

/// Returns the name before the number, and the number of parts; `None` if the file is whole.
fn name_of_part(path: &Path) -> Option<(String, usize)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, n) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    let (number, n) = (digits(number)?, digits(n)?);
    (n > 1 && (1..=n).contains(&number)).then(|| (name.to_owned(), n))
}

/// Reads the heads of all parts of a file as one.
pub(super) fn read(files: &[(&Path, &[u8])]) -> Result<Header> {
    let mut whole: Option<Header> = None;
    for (i, (path, bytes)) in files.iter().enumerate() {
        let mut header = reader::read(path, bytes)?;
        check_part(path, &header, i, files.len())?;
        header.tensors.iter_mut().for_each(|tensor| tensor.part = i);
        match &mut whole {
            None => whole = Some(header),
            Some(whole) => whole.tensors.append(&mut header.tensors),
        }
    }
    let (Some(header), Some((path, _))) = (whole, files.first()) else {
        return Err(Error::format(Path::new(""), "there is no file"));
    };
    let expected = header.metadata.integer("split.tensors.count")?;
    match expected.filter(|_| files.len() > 1) {
        Some(expected) if expected != header.tensors.len() as u64 => {
            let found = header.tensors.len();
            let reason = format!("all parts have {found} tensors, split.tensors.count {expected}");
            Err(Error::format(path, reason))
        }
        _ => Ok(header),
    }
}

/// Checks that a file is part `i` of `n`.
fn check_part(path: &Path, header: &Header, i: usize, n: usize) -> Result<()> {
    let count = header.metadata.integer("split.count")?.unwrap_or(1).max(1);
    let number = header.metadata.integer("split.no")?.unwrap_or(0);
    if (number, count) == (i as u64, n as u64) {
        return Ok(());
    }
    let (found, number) = (format!("part {} of {count}", number.saturating_add(1)), i + 1);
    let name = format!("NAME-00001-of-{count:05}.gguf");
    Err(Error::Format {
        path: path.to_owned(),
        reason: format!("it is {found} (split.no, split.count), expected part {number} of {n}"),
        hint: Some(format!("give the first part, under its original name: {name}")),
    })
}
