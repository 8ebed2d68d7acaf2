//! Writing a shard.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lehr_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use super::format::{HEADER_BYTES, Header, hash_bytes};
use crate::{Error, Result};

/// Writes documents into a shard. The file gets its name only when it is complete:
/// [`finish`](Self::finish) syncs and renames a temporary file.
pub struct ShardWriter {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    header: Header,
    prefix: Vec<u32>,
    starts: Vec<u64>,
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Creates the shard `path` for ids of `tokenizer`. Its
    /// [`document_prefix`](Tokenizer::document_prefix) begins each document, and its
    /// end-of-document token ends it.
    ///
    /// # Errors
    /// The file cannot be made, or the tokenizer has no end-of-document token.
    pub fn create(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let beside = path.with_extension("partial");
        let end_of_document = tokenizer.end_of_document()?;
        let vocab_size = tokenizer.vocab_size();
        let header = Header {
            id_bytes: if vocab_size <= 1 << 16 { 2 } else { 4 },
            tokens: 0,
            documents: 0,
            text_bytes: 0,
            vocab_size: u32::try_from(vocab_size)
                .expect("ids are u32, so that their number is too"),
            end_of_document,
            tokenizer: hash_bytes(&tokenizer.hash()).expect("a tokenizer's hash is SHA-256"),
            payload: [0; 32],
        };
        let begin = || -> io::Result<BufWriter<File>> {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&beside)?);
            file.write_all(&[0; HEADER_BYTES])?;
            Ok(file)
        };
        let file = begin().map_err(|source| write_error(&path, source))?;
        let (hasher, starts, buffer) = (Sha256::new(), vec![0], Vec::new());
        let prefix = tokenizer.document_prefix();
        Ok(Self { path, beside, file, hasher, header, prefix, starts, buffer })
    }

    /// Appends a document of `text_bytes` UTF-8 bytes with the ids around it. Returns the number
    /// of tokens written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<u64> {
        self.buffer.clear();
        for id in self.prefix.iter().chain(ids).chain([&self.header.end_of_document]) {
            let width = self.header.id_bytes as usize;
            self.buffer.extend_from_slice(&id.to_le_bytes()[..width]);
        }
        let tokens = (self.prefix.len() + ids.len()) as u64 + 1;
        self.header.tokens += tokens;
        self.header.documents += 1;
        self.header.text_bytes += text_bytes;
        self.starts.push(self.header.tokens);
        self.write_buffer()?;
        Ok(tokens)
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Completes the shard and renames it to its final name.
    ///
    /// # Errors
    /// The file cannot be written, synced or renamed.
    pub fn finish(mut self) -> Result<()> {
        let tokens = self.header.tokens * u64::from(self.header.id_bytes);
        let padding = tokens.next_multiple_of(8) - tokens;
        self.buffer.clear();
        self.buffer.resize(padding as usize, 0);
        self.buffer.extend(self.starts.iter().flat_map(|start| start.to_le_bytes()));
        self.write_buffer()?;
        self.header.payload = self.hasher.finalize().into();
        let header = self.header.encode();
        let mut file = self.file;
        let mut close = || -> io::Result<()> {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.flush()?;
            file.get_ref().sync_all()?;
            std::fs::rename(&self.beside, &self.path)
        };
        close().map_err(|source| write_error(&self.path, source))
    }

    fn write_buffer(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(|source| write_error(&self.path, source))
    }
}

pub(crate) fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Io { action: "writing", path: path.to_owned(), source }
}
