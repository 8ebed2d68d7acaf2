//! Conversion of documents to token shards.

use std::path::{Path, PathBuf};

use lehr_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use crate::shard::{EXTENSION, ShardSet, ShardWriter};
use crate::source::Document;
use crate::{Corpus, Error, Result};

/// Bytes of text held and encoded at a time. A longer document is held as a whole.
const CHUNK_BYTES: usize = 8 << 20;
/// Part of the cache key. Raise it when the same text gives different shards.
const CACHE_VERSION: &[u8] = b"lehr token cache 2";

/// How to write shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// A shard ends with the document that makes it reach this many tokens.
    pub shard_tokens: u64,
}

impl Default for TokenizeOptions {
    /// 2^27 tokens: files of 256 MiB with ids of two bytes.
    fn default() -> Self {
        Self { shard_tokens: 1 << 27 }
    }
}

/// Progress of a pass over documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents done.
    pub documents: u64,
    /// UTF-8 bytes of text done.
    pub text_bytes: u64,
    /// Tokens written; 0 when documents are only read.
    pub tokens: u64,
}

/// Tokenises `documents` into shards in a folder below `cache` named after the documents and the
/// tokenizer, and opens them. If that folder exists, its shards are opened.
///
/// Calls `progress` every few megabytes, and never if there is nothing to do.
///
/// # Errors
/// There are no documents, the tokenizer has no end-of-document token, the folder cannot be
/// written, or cached shards are damaged.
pub fn tokenize_cached(
    documents: &Corpus,
    tokenizer: &Tokenizer,
    cache: impl AsRef<Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<ShardSet> {
    let cache = cache.as_ref();
    let key = cache_key(documents, tokenizer)?;
    let folder = cache.join(&key);
    if !folder.is_dir() {
        let beside = cache.join(format!(".{key}.{}", std::process::id()));
        let options = TokenizeOptions::default();
        let written = documents
            .read()
            .and_then(|all| write_shards(texts(all), tokenizer, &beside, &options, progress))
            .and_then(|()| publish(&beside, &folder));
        if let Err(error) = written {
            // The first error is the one to report; the leftovers only take disk space.
            let _ = std::fs::remove_dir_all(&beside);
            return Err(error);
        }
    }
    ShardSet::open(folder, tokenizer)
}

/// Tokenises a stream of documents into shards `00000.tokens` and following in `folder`, in bounded
/// memory, and opens them. The folder must not hold shards yet.
///
/// # Errors
/// As [`tokenize_cached`], and the first error of the stream.
pub fn tokenize_to(
    documents: impl IntoIterator<Item = Result<Document>>,
    tokenizer: &Tokenizer,
    folder: impl AsRef<Path>,
    options: &TokenizeOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<ShardSet> {
    write_shards(texts(documents.into_iter()), tokenizer, folder.as_ref(), options, progress)?;
    ShardSet::open(folder, tokenizer)
}

fn texts(
    documents: impl Iterator<Item = Result<Document>>,
) -> impl Iterator<Item = Result<String>> {
    documents.map(|document| document.map(|document| document.text))
}

fn write_shards(
    texts: impl Iterator<Item = Result<String>>,
    tokenizer: &Tokenizer,
    folder: &Path,
    options: &TokenizeOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| write_error(folder, source))?;
    let mut shards = Shards {
        tokenizer,
        folder,
        shard_tokens: options.shard_tokens,
        written: 0,
        open: None,
        done: Progress::default(),
    };
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for text in texts {
        let text = text?;
        bytes += text.len();
        chunk.push(text);
        if bytes >= CHUNK_BYTES {
            shards.write(&chunk)?;
            progress(shards.done);
            chunk.clear();
            bytes = 0;
        }
    }
    shards.write(&chunk)?;
    shards.close()?;
    progress(shards.done);
    if shards.done.documents == 0 { Err(Error::NoDocuments) } else { Ok(()) }
}

struct Shards<'a> {
    tokenizer: &'a Tokenizer,
    folder: &'a Path,
    shard_tokens: u64,
    written: usize,
    open: Option<ShardWriter>,
    done: Progress,
}

impl Shards<'_> {
    fn write(&mut self, texts: &[String]) -> Result<()> {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (text, ids) in texts.iter().zip(self.tokenizer.encode_batch(&texts)?) {
            let mut shard = match self.open.take() {
                Some(shard) => shard,
                None => ShardWriter::create(self.next_path()?, self.tokenizer)?,
            };
            self.done.tokens += shard.push(&ids, text.len() as u64)?;
            self.done.documents += 1;
            self.done.text_bytes += text.len() as u64;
            let full = shard.tokens() >= self.shard_tokens;
            self.open = Some(shard);
            if full {
                self.close()?;
            }
        }
        Ok(())
    }

    fn next_path(&mut self) -> Result<PathBuf> {
        let path = self.folder.join(format!("{:05}.{EXTENSION}", self.written));
        if path.exists() {
            return Err(write_error(&path, std::io::ErrorKind::AlreadyExists.into()));
        }
        self.written += 1;
        Ok(path)
    }

    fn close(&mut self) -> Result<()> {
        self.open.take().map_or(Ok(()), ShardWriter::finish)
    }
}

/// Renames the finished folder. If another process was faster with the same content, its folder
/// stays.
fn publish(beside: &Path, folder: &Path) -> Result<()> {
    match std::fs::rename(beside, folder) {
        Err(_) if folder.is_dir() => {
            std::fs::remove_dir_all(beside).map_err(|source| write_error(beside, source))
        }
        renamed => renamed.map_err(|source| write_error(folder, source)),
    }
}

fn cache_key(documents: &Corpus, tokenizer: &Tokenizer) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(CACHE_VERSION);
    hasher.update(tokenizer.hash().as_bytes());
    // The ids around a document may come from files beside the tokenizer's.
    for ids in [tokenizer.document_prefix(), vec![tokenizer.end_of_document()?]] {
        hasher.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    }
    hasher.update(documents.hash().as_bytes());
    Ok(hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "writing", path: path.to_owned(), source }
}
