//! The bundled text: everything below `data/` at the root of the repository, compressed into the
//! program. So `lehr quickstart` works offline and from any folder.
//!
//! `data/README.md` (which is one of the files) says where each file comes from and its licence.
//! This crate does not interpret the files.

mod error;
mod unpack;

use std::io::Read as _;

pub use error::{Error, Result};
pub use unpack::unpack;

/// One bundled file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoFile {
    /// Its path below `data/`, such as `pretrain/en_austen.txt`; `/` on every system.
    pub path: &'static str,
    /// Its unpacked size.
    pub bytes: usize,
}

/// Position of a file in the archive.
struct Entry {
    path: &'static str,
    n_bytes: usize,
    start: usize,
    end: usize,
}

const ENTRIES: &[Entry] = include!(concat!(env!("OUT_DIR"), "/entries.rs"));
const ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/archive.bin"));

/// All bundled files, in the order of their paths.
#[must_use]
pub fn files() -> Vec<DemoFile> {
    ENTRIES.iter().map(|e| DemoFile { path: e.path, bytes: e.n_bytes }).collect()
}

/// Returns the text of one file.
///
/// # Errors
/// If there is no such file, or the program file is damaged.
pub fn read(path: &str) -> Result<String> {
    let entry = ENTRIES.iter().find(|e| e.path == path);
    let entry = entry.ok_or_else(|| Error::NotFound { path: path.to_owned() })?;
    String::from_utf8(entry.content()?)
        .map_err(|source| Error::NotText { path: entry.path, source })
}

impl Entry {
    /// Unpacks the bytes and verifies the checksum of the stream.
    fn content(&self) -> Result<Vec<u8>> {
        inflate(&ARCHIVE[self.start..self.end], self.n_bytes)
            .map_err(|source| Error::Damaged { path: self.path, source })
    }
}

fn inflate(packed: &[u8], n_bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(n_bytes);
    flate2::read::ZlibDecoder::new(packed).read_to_end(&mut content)?;
    if content.len() == n_bytes {
        return Ok(content);
    }
    let found = format!("{} bytes instead of {n_bytes}", content.len());
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_in_the_archive_is_an_error() {
        for entry in ENTRIES {
            let mut packed = ARCHIVE[entry.start..entry.end].to_vec();
            assert!(inflate(&packed, entry.n_bytes).is_ok());
            assert!(inflate(&packed, entry.n_bytes + 1).is_err());
            let middle = packed.len() / 2;
            packed[middle] ^= 0x10;
            assert!(inflate(&packed, entry.n_bytes).is_err(), "{}", entry.path);
        }
    }

    #[test]
    fn the_archive_adds_less_than_8_mb_to_the_program() {
        assert!(ARCHIVE.len() < 8_000_000, "{} bytes", ARCHIVE.len());
    }
}
