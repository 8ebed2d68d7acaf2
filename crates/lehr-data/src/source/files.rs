//! Files to read, and how to open them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::encoding::{self, BOM};
use super::zstd::ZstdReader;
use crate::{Error, Result};

pub(super) const KNOWN: &str =
    ".txt, .md, .jsonl, .json, .csv, .tsv or .conll, also with .gz or .zst";
/// Endings of files of words and tags in columns.
const COLUMNS: [&str; 10] =
    ["conll", "iob", "iob2", "bio", "bioes", "bmes", "train", "dev", "valid", "test"];
/// Bytes at the start of a file from which its encoding is recognised.
const HEAD_BYTES: u64 = 4096;

/// Format of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    /// One object per line, a list of objects, or a list within an object. The content decides,
    /// because people use both endings, `.json` and `.jsonl`, for all of them.
    Json,
    Csv,
    Tsv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// The path below the given folder, which is the same on every machine.
    pub(crate) name: String,
    pub(crate) format: Format,
    compression: Compression,
}

impl SourceFile {
    /// The file at `path`, called `name`; `None` if its ending is not known.
    pub(super) fn new(path: &Path, name: &str) -> Option<Self> {
        let (stem, compression) = uncompressed(name);
        let format = match stem.rsplit_once('.')?.1 {
            "txt" | "md" => Format::Text,
            // They are recognised by their content.
            ending if COLUMNS.contains(&ending) => Format::Text,
            "jsonl" | "json" | "ndjson" => Format::Json,
            "csv" => Format::Csv,
            "tsv" => Format::Tsv,
            _ => return None,
        };
        Some(Self { path: path.to_owned(), name: name.to_owned(), format, compression })
    }

    /// The file at `path` as text, whatever its ending.
    pub(super) fn text(path: &Path, name: &str) -> Self {
        let (_, compression) = uncompressed(name);
        let (path, name) = (path.to_owned(), name.to_owned());
        Self { path, name, format: Format::Text, compression }
    }

    /// Whether the ending says that the file is a text, and no list of records or columns.
    pub(super) fn is_prose(&self) -> bool {
        let (stem, _) = uncompressed(&self.name);
        let ending = stem.rsplit_once('.').map_or("", |(_, ending)| ending);
        self.format == Format::Text && !COLUMNS.contains(&ending)
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
            .take(HEAD_BYTES)
            .read_to_end(&mut head)
            .map_err(|source| self.read_error(source))?;
        if let Some(encoding) = encoding::wide(&head) {
            return Err(Error::Encoding { path: self.path.clone(), encoding });
        }
        let mut head = Cursor::new(head);
        if head.get_ref().starts_with(BOM) {
            head.set_position(BOM.len() as u64);
        }
        Ok(Box::new(head.chain(reader)))
    }

    /// Returns the error for a failed read: that of the compressed stream, if there is one.
    pub(crate) fn read_error(&self, source: io::Error) -> Error {
        match self.compression {
            Compression::None => io_error(&self.path, source),
            _ => Error::Compressed { path: self.path.clone(), reason: source.to_string() },
        }
    }

    /// Returns the error for a text file where records are expected.
    pub(crate) fn not_records(&self) -> Error {
        Error::UnknownExtension {
            path: self.path.clone(),
            found: format!("{:?}", ending(&self.path).unwrap_or_default()),
            expected: ".jsonl, .json, .csv or .tsv, also with .gz or .zst",
        }
    }
}

/// The name in lower case without the ending of a compressed file, and the compression.
fn uncompressed(name: &str) -> (String, Compression) {
    let lower = name.to_lowercase();
    if let Some(stem) = lower.strip_suffix(".gz") {
        (stem.to_owned(), Compression::Gzip)
    } else if let Some(stem) = lower.strip_suffix(".zst") {
        (stem.to_owned(), Compression::Zstd)
    } else {
        (lower, Compression::None)
    }
}

/// Iterator over the lines of a file, which must be UTF-8.
///
/// A line ends with `\n`, `\r\n` or a lone `\r`. A byte-order mark at the start of a line is
/// dropped: joined files have one in the middle.
pub(crate) struct Lines {
    file: SourceFile,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    offset: u64,
}

impl Lines {
    pub(crate) fn new(file: SourceFile) -> Result<Self> {
        let reader = file.open()?;
        Ok(Self::over(file, reader))
    }

    /// The lines that `reader` gives, the start of `file` perhaps included.
    pub(super) fn over(file: SourceFile, reader: Box<dyn BufRead + Send>) -> Self {
        Self { file, reader, line: 0, offset: 0 }
    }

    pub(crate) fn file(&self) -> &SourceFile {
        &self.file
    }

    /// Returns the next line with its line break, and its number from 1. After a line that is not
    /// UTF-8, reading continues with the next one.
    pub(crate) fn next_line(&mut self) -> Result<Option<(u64, String)>> {
        let mut bytes = Vec::new();
        self.read_line(&mut bytes).map_err(|source| self.file.read_error(source))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let start = self.offset;
        self.offset += bytes.len() as u64;
        if bytes.starts_with(BOM) {
            bytes.drain(..BOM.len());
        }
        let text = String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            path: self.file.path.clone(),
            line: self.line,
            offset: start + error.utf8_error().valid_up_to() as u64,
            encoding: encoding::narrow(error.as_bytes()),
        })?;
        Ok(Some((self.line, text)))
    }

    /// Appends the bytes of the next line to `line`; none at the end of the file.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let buffer = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            if line.last() == Some(&b'\r') {
                if buffer.first() == Some(&b'\n') {
                    line.push(b'\n');
                    self.reader.consume(1);
                }
                return Ok(());
            }
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if line.last() == Some(&b'\n') {
                return Ok(());
            }
        }
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { action: "reading", path: path.to_owned(), source }
}

pub(super) fn unknown_extension(path: &Path) -> Error {
    let found = match ending(path) {
        Some(ending) => format!("{ending:?}"),
        None => "missing".to_owned(),
    };
    Error::UnknownExtension { path: path.to_owned(), found, expected: KNOWN }
}

pub(super) fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| format!(".{}", ending.to_string_lossy()))
}
