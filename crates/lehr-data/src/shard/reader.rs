//! Reading a shard.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lehr_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use super::format::{HEADER_BYTES, Header, hash_bytes, hex, u64_at};
use crate::{Error, Result};

/// Bytes read at a time when a shard is checked.
const BLOCK_BYTES: usize = 1 << 20;

/// A shard, checked. Its tokens stay on disk: a range of them is read when it is asked for.
///
/// A memory map would read the same, but pages of a map count as memory of the process, so that a
/// run over large data would seem to grow until all of it was read once.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    header: Header,
    /// Offset of the document index.
    index_offset: u64,
}

impl Shard {
    /// Opens a shard and checks all of it: header, length, content hash, document index, and that
    /// it was made with `tokenizer`. This reads the file once.
    ///
    /// # Errors
    /// The file cannot be read, is cut or damaged, or belongs to another tokenizer.
    pub fn open(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io { action: "reading", path: path.to_owned(), source };
        let damaged = |reason| Error::Shard { path: PathBuf::from(path), reason };
        let mut file = File::open(path).map_err(io)?;
        let mut head = Vec::new();
        file.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut head).map_err(io)?;
        let found = file.metadata().map_err(io)?.len();
        let header = Header::decode(&head, found).map_err(damaged)?;
        if Some(header.tokenizer) != hash_bytes(&tokenizer.hash()) {
            return Err(Error::OtherTokenizer {
                path: path.to_owned(),
                found: hex(&header.tokenizer),
                expected: tokenizer.hash(),
            });
        }
        let index_offset = header
            .index_offset()
            .ok_or_else(|| damaged("it is too large for this machine".to_owned()))?;
        let mut check = Check::new(&header, index_offset, tokenizer.vocab_size());
        let mut block = vec![0; BLOCK_BYTES];
        let mut left = found - HEADER_BYTES as u64;
        while left > 0 {
            let n = left.min(BLOCK_BYTES as u64) as usize;
            file.read_exact(&mut block[..n]).map_err(io)?;
            check.add(&block[..n]);
            left -= n as u64;
        }
        check.finish(&header).map_err(damaged)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), header, index_offset })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// UTF-8 bytes of the documents.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// Returns the index of a document's first token. For the number of documents, returns the
    /// number of tokens.
    pub(crate) fn start(&self, document: u64) -> Result<u64> {
        Ok(self.starts(document..document + 1)?[0])
    }

    /// Returns the first tokens of documents, as [`start`](Self::start) does.
    pub(crate) fn starts(&self, documents: Range<u64>) -> Result<Vec<u64>> {
        let n = documents.end.saturating_sub(documents.start) as usize;
        let mut bytes = vec![0; n * 8];
        self.read_at(self.index_offset + documents.start * 8, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(|bytes| u64_at(bytes, 0)).collect())
    }

    /// Returns the ids of a range of tokens.
    pub(crate) fn ids(&self, range: Range<u64>) -> Result<Vec<u32>> {
        let width = self.header.id_bytes as usize;
        let n = range.end.saturating_sub(range.start) as usize;
        let mut bytes = vec![0; n * width];
        self.read_at(HEADER_BYTES as u64 + range.start * width as u64, &mut bytes)?;
        Ok(bytes.chunks_exact(width).map(id_of).collect())
    }

    /// Returns the first document that begins at token `at` or later.
    pub(crate) fn document_from(&self, at: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.documents());
        while low < high {
            let middle = (low + high) / 2;
            if self.start(middle)? < at { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = || -> io::Result<()> {
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(bytes)
        };
        read().map_err(|source| Error::Io { action: "reading", path: self.path.clone(), source })
    }
}

fn id_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |id, &byte| (id << 8) | u32::from(byte))
}

/// The check of everything after the header, block by block. A checksum proves that nothing
/// changed, not that the writer was correct, so the contents are checked too.
struct Check {
    hasher: Sha256,
    id_bytes: usize,
    vocab_size: usize,
    /// Bytes of ids that are still to come, then of padding before the document index.
    ids_left: u64,
    padding_left: u64,
    /// The document starts seen so far: the last of them, and whether they rise from 0.
    last_start: Option<u64>,
    rises: bool,
    bad_id: Option<u32>,
}

impl Check {
    fn new(header: &Header, index_offset: u64, vocab_size: usize) -> Self {
        let ids_left = header.tokens * u64::from(header.id_bytes);
        Self {
            hasher: Sha256::new(),
            id_bytes: header.id_bytes as usize,
            vocab_size,
            ids_left,
            padding_left: index_offset - HEADER_BYTES as u64 - ids_left,
            last_start: None,
            rises: true,
            bad_id: None,
        }
    }

    /// Takes the next block. All but the last have a length that no id and no start straddles.
    fn add(&mut self, block: &[u8]) {
        self.hasher.update(block);
        let (ids, rest) = block.split_at(self.ids_left.min(block.len() as u64) as usize);
        let (padding, starts) = rest.split_at(self.padding_left.min(rest.len() as u64) as usize);
        self.ids_left -= ids.len() as u64;
        self.padding_left -= padding.len() as u64;
        let mut ids = ids.chunks_exact(self.id_bytes).map(id_of);
        if self.bad_id.is_none() {
            self.bad_id = ids.find(|&id| id as usize >= self.vocab_size);
        }
        for start in starts.chunks_exact(8).map(|bytes| u64_at(bytes, 0)) {
            self.rises &= self.last_start.map_or(start == 0, |last| last < start);
            self.last_start = Some(start);
        }
    }

    fn finish(self, header: &Header) -> std::result::Result<(), String> {
        if self.hasher.finalize()[..] != header.payload {
            return Err("the content is damaged: its checksum does not match".to_owned());
        }
        if !self.rises || self.last_start != Some(header.tokens) {
            return Err("the document index is not rising from 0 to the number of tokens".into());
        }
        let size = self.vocab_size;
        match self.bad_id {
            Some(id) => Err(format!("it has token id {id}, the vocabulary has {size}")),
            None => Ok(()),
        }
    }
}
