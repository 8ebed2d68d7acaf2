//! The shards of a folder as one stream of tokens.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use lehr_tokenizer::Tokenizer;

use super::{EXTENSION, Shard};
use crate::{Error, Result};

/// Entries of a document index that are read at a time.
const STARTS_AT_A_TIME: u64 = 1 << 16;

/// The documents of all shards of a folder, in the order of the file names, as one stream of
/// tokens. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ShardSet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shards: Vec<Shard>,
    /// First token of each shard in the stream, and the number of all tokens last.
    starts: Vec<u64>,
    /// First document of each shard, and the number of all documents last.
    first_documents: Vec<u64>,
    byte_lengths: Vec<u32>,
    prefix: Vec<u32>,
    end_of_document: u32,
}

/// A range of the stream.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    pub(crate) ids: Vec<u32>,
    /// Whether each token is the first of its document.
    pub(crate) begins: Vec<bool>,
    /// Tokens of the first document that lie before the range.
    pub(crate) n_before: u64,
}

impl ShardSet {
    /// Opens all shards of `folder`, checking each as [`Shard::open`] does.
    ///
    /// # Errors
    /// The folder cannot be read or has no shard, or a shard is damaged or of another tokenizer.
    pub fn open(folder: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let folder = folder.as_ref();
        let io = |source| Error::Io { action: "reading", path: folder.to_owned(), source };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io)? {
            paths.push(entry.map_err(io)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|ending| ending == EXTENSION));
        paths.sort();
        let open = |path| Shard::open(path, tokenizer);
        let shards = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (mut starts, mut first_documents) = (vec![0], vec![0]);
        for shard in &shards {
            starts.push(starts[starts.len() - 1] + shard.tokens());
            first_documents.push(first_documents[starts.len() - 2] + shard.documents());
        }
        if starts[starts.len() - 1] == 0 {
            return Err(Error::Empty { path: folder.to_owned(), what: "tokenised document" });
        }
        let byte_lengths = tokenizer.byte_lengths();
        let end_of_document = tokenizer.end_of_document()?;
        let prefix = tokenizer.document_prefix();
        let inner =
            Inner { shards, starts, first_documents, byte_lengths, prefix, end_of_document };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Number of tokens, the ids around documents included.
    pub fn tokens(&self) -> u64 {
        self.inner.starts[self.inner.shards.len()]
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.inner.shards.iter().map(Shard::documents).sum()
    }

    /// UTF-8 bytes of the documents.
    pub fn text_bytes(&self) -> u64 {
        self.inner.shards.iter().map(Shard::text_bytes).sum()
    }

    /// The tokens that begin each document; none for most models.
    pub fn document_prefix(&self) -> &[u32] {
        &self.inner.prefix
    }

    /// The token that ends each document.
    pub fn end_of_document(&self) -> u32 {
        self.inner.end_of_document
    }

    pub(crate) fn byte_lengths(&self) -> &[u32] {
        &self.inner.byte_lengths
    }

    /// Returns the tokens of `range`, which must lie within the stream.
    pub(crate) fn stretch(&self, range: Range<u64>) -> Result<Stretch> {
        let Inner { shards, starts, .. } = &*self.inner;
        let mut stretch = Stretch::default();
        let first = starts.partition_point(|&start| start <= range.start) - 1;
        for (shard, bounds) in shards.iter().zip(starts.windows(2)).skip(first) {
            if bounds[0] >= range.end {
                break;
            }
            let from = range.start.max(bounds[0]) - bounds[0];
            let to = range.end.min(bounds[1]) - bounds[0];
            let base = stretch.ids.len();
            stretch.ids.extend(shard.ids(from..to)?);
            stretch.begins.resize(stretch.ids.len(), false);
            let first = shard.document_from(from)?;
            // A document has at least one token.
            let last = shard.documents().min(first + (to - from));
            let begins = shard.starts(first..last)?;
            if base == 0 && begins.first() != Some(&from) && first > 0 {
                stretch.n_before = from - shard.start(first - 1)?;
            }
            for at in begins.into_iter().take_while(|&at| at < to) {
                stretch.begins[base + (at - from) as usize] = true;
            }
        }
        Ok(stretch)
    }

    /// Returns the number of tokens of each document, in the order of the stream.
    pub(crate) fn document_lengths(&self) -> Result<Vec<u32>> {
        let mut lengths = Vec::with_capacity(self.documents() as usize);
        for shard in &self.inner.shards {
            let mut start = 0;
            let mut first = 1;
            while first <= shard.documents() {
                let end = (first + STARTS_AT_A_TIME).min(shard.documents() + 1);
                for next in shard.starts(first..end)? {
                    let length = u32::try_from(next - start);
                    lengths.push(length.map_err(|_| Error::LongDocument { tokens: next - start })?);
                    start = next;
                }
                first = end;
            }
        }
        Ok(lengths)
    }

    /// Returns tokens `range` of a document.
    pub(crate) fn document_ids(&self, document: u64, range: Range<u64>) -> Result<Vec<u32>> {
        let Inner { shards, first_documents, .. } = &*self.inner;
        let shard = first_documents.partition_point(|&first| first <= document) - 1;
        let start = shards[shard].start(document - first_documents[shard])?;
        shards[shard].ids(start + range.start..start + range.end)
    }
}
