//! Which files to read, and how to open them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::zstd::ZstdReader;
use crate::{Error, Result};

const BOM: &[u8] = b"\xEF\xBB\xBF";
const KNOWN: &str = ".txt, .md, .jsonl, .json, .csv or .tsv, also with .gz or .zst";

/// Format of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    JsonLines,
    Json,
    Csv { delimiter: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file to read.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// The path below the given folder, which is the same on every machine.
    pub(crate) name: String,
    pub(crate) format: Format,
    compression: Compression,
}

/// Lists the files that `path` stands for.
pub(crate) fn list(path: &Path) -> Result<Vec<SourceFile>> {
    let metadata = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
    if !metadata.is_dir() {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        return match SourceFile::new(path, name) {
            Some(file) => Ok(vec![file]),
            None => Err(unknown_extension(path)),
        };
    }
    let mut files = Vec::new();
    walk(path, "", &mut files)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Lists the files that are read from a file or folder, by name and path. The name is the path below
/// the folder.
///
/// # Errors
/// The path does not exist, or its ending is not known.
pub fn data_files(path: impl AsRef<Path>) -> Result<Vec<(String, PathBuf)>> {
    Ok(list(path.as_ref())?.into_iter().map(|file| (file.name, file.path)).collect())
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<SourceFile>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let entry = entry.map_err(|source| io_error(folder, source))?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if file_name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let name = format!("{prefix}{file_name}");
        // Links to folders are not followed, because a circle of links would never end.
        let kind = entry.file_type().map_err(|source| io_error(&path, source))?;
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.is_file() {
            files.extend(SourceFile::new(&path, name));
        }
    }
    Ok(())
}

impl SourceFile {
    fn new(path: &Path, name: String) -> Option<Self> {
        let lower = name.to_lowercase();
        let (stem, compression) = if let Some(stem) = lower.strip_suffix(".gz") {
            (stem, Compression::Gzip)
        } else if let Some(stem) = lower.strip_suffix(".zst") {
            (stem, Compression::Zstd)
        } else {
            (lower.as_str(), Compression::None)
        };
        let format = match stem.rsplit_once('.')?.1 {
            "txt" | "md" => Format::Text,
            "jsonl" => Format::JsonLines,
            "json" => Format::Json,
            "csv" => Format::Csv { delimiter: b',' },
            "tsv" => Format::Csv { delimiter: b'\t' },
            _ => return None,
        };
        Some(Self { path: path.to_owned(), name, format, compression })
    }

    /// Opens and decompresses the file, and skips a byte-order mark.
    pub(crate) fn open(&self) -> Result<Box<dyn BufRead + Send>> {
        let file = File::open(&self.path).map_err(|source| io_error(&self.path, source))?;
        let raw = BufReader::with_capacity(1 << 16, file);
        let mut reader: Box<dyn BufRead + Send> = match self.compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(raw))),
            Compression::Zstd => Box::new(BufReader::new(ZstdReader::new(raw))),
        };
        let mut head = Vec::new();
        reader
            .by_ref()
            .take(BOM.len() as u64)
            .read_to_end(&mut head)
            .map_err(|source| self.read_error(source))?;
        if head == BOM {
            return Ok(reader);
        }
        Ok(Box::new(Cursor::new(head).chain(reader)))
    }

    /// Returns the error for a failed read: that of the compressed stream, if there is one.
    pub(crate) fn read_error(&self, source: io::Error) -> Error {
        match self.compression {
            Compression::None => io_error(&self.path, source),
            _ => Error::Compressed { path: self.path.clone(), reason: source.to_string() },
        }
    }

    /// Returns the whole decompressed text.
    pub(crate) fn read_to_string(&self) -> Result<String> {
        let mut lines = Lines::new(self.clone())?;
        let mut text = String::new();
        while let Some((_, line)) = lines.next_line()? {
            text.push_str(&line);
        }
        Ok(text)
    }

    /// Returns the error for a text file where records are expected.
    pub(crate) fn not_records(&self) -> Error {
        Error::UnknownExtension {
            path: self.path.clone(),
            found: format!("{:?}", ending(&self.path)),
            expected: ".jsonl, .json, .csv or .tsv, also with .gz or .zst",
        }
    }
}

/// Iterator over the lines of a file, which must be UTF-8.
pub(crate) struct Lines {
    file: SourceFile,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    offset: u64,
}

impl Lines {
    pub(crate) fn new(file: SourceFile) -> Result<Self> {
        let reader = file.open()?;
        Ok(Self { file, reader, line: 0, offset: 0 })
    }

    pub(crate) fn file(&self) -> &SourceFile {
        &self.file
    }

    /// Returns the next line with its line break, and its number from 1.
    pub(crate) fn next_line(&mut self) -> Result<Option<(u64, String)>> {
        let mut bytes = Vec::new();
        let read = self.reader.read_until(b'\n', &mut bytes);
        if read.map_err(|source| self.file.read_error(source))? == 0 {
            return Ok(None);
        }
        self.line += 1;
        let length = bytes.len() as u64;
        let text = String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            path: self.file.path.clone(),
            line: self.line,
            offset: self.offset + error.utf8_error().valid_up_to() as u64,
        })?;
        self.offset += length;
        Ok(Some((self.line, text)))
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { action: "reading", path: path.to_owned(), source }
}

fn unknown_extension(path: &Path) -> Error {
    let found = match ending(path) {
        Some(ending) => format!("{ending:?}"),
        None => "missing".to_owned(),
    };
    Error::UnknownExtension { path: path.to_owned(), found, expected: KNOWN }
}

fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| format!(".{}", ending.to_string_lossy()))
}
