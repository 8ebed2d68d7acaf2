//! Reading a shard.

use std::fs::File;
use std::path::{Path, PathBuf};

use lehr_tokenizer::Tokenizer;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::format::{HEADER_BYTES, Header, hash_bytes, hex, u64_at};
use crate::{Error, Result};

/// A shard, memory-mapped and checked.
#[derive(Debug)]
pub struct Shard {
    map: Mmap,
    header: Header,
    index_offset: usize,
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
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read only, and shards are never changed in place: the writer renames a
        // complete file into its place. No reader of mapped files can guard against another process
        // that truncates the file.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let damaged = |reason| Error::Shard { path: PathBuf::from(path), reason };
        let header = Header::decode(&map).map_err(damaged)?;
        if Some(header.tokenizer) != hash_bytes(&tokenizer.hash()) {
            return Err(Error::OtherTokenizer {
                path: path.to_owned(),
                found: hex(&header.tokenizer),
                expected: tokenizer.hash(),
            });
        }
        if Sha256::digest(&map[HEADER_BYTES..])[..] != header.payload {
            return Err(damaged("the content is damaged: its checksum does not match".to_owned()));
        }
        let index_offset = header.index_offset().and_then(|offset| usize::try_from(offset).ok());
        let index_offset =
            index_offset.ok_or_else(|| damaged("it is too large for this machine".to_owned()))?;
        let shard = Self { map, header, index_offset };
        shard.check_contents(tokenizer.vocab_size()).map_err(damaged)?;
        Ok(shard)
    }

    /// A checksum proves that nothing changed, not that the writer was correct.
    fn check_contents(&self, vocab_size: usize) -> std::result::Result<(), String> {
        let starts = (0..=self.documents()).map(|document| self.start(document));
        if self.start(0) != 0
            || self.start(self.documents()) != self.tokens()
            || !starts.is_sorted_by(|a, b| a < b)
        {
            return Err("the document index is not rising from 0 to the number of tokens".into());
        }
        match (0..self.tokens()).map(|at| self.token(at)).find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(format!("it has token id {id}, the vocabulary has {vocab_size}")),
            None => Ok(()),
        }
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
    pub(crate) fn start(&self, document: u64) -> u64 {
        u64_at(&self.map, self.index_offset + document as usize * 8)
    }

    pub(crate) fn token(&self, at: u64) -> u32 {
        let width = self.header.id_bytes as usize;
        let from = HEADER_BYTES + at as usize * width;
        let bytes = &self.map[from..from + width];
        bytes.iter().rev().fold(0, |id, &byte| (id << 8) | u32::from(byte))
    }

    /// Returns the first document that begins at token `at` or later.
    pub(crate) fn document_from(&self, at: u64) -> u64 {
        let (mut low, mut high) = (0, self.documents());
        while low < high {
            let middle = (low + high) / 2;
            if self.start(middle) < at { low = middle + 1 } else { high = middle }
        }
        low
    }
}
