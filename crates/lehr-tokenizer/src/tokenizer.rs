//! The tokenizer handle: loading, encoding, decoding.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer as HfTokenizer;

use crate::alphabet::Alphabet;
use crate::{Error, Result, StreamDecoder};

/// Bytes of text encoded at a time by [`Tokenizer::encode_batch`]: the encoder keeps about a
/// hundred bytes of bookkeeping per token until a group is done.
const BATCH_BYTES: usize = 1 << 20;

/// Unused ids that a vocabulary may have beyond its own size. Tables are as long as the largest id,
/// so that a damaged file with one huge id would otherwise take all memory.
const MAX_GAPS: usize = 1 << 16;

/// Names under which tokenizers keep the token that ends a document, most specific first.
const END_OF_DOCUMENT: [&str; 6] =
    ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[SEP]"];

/// A trained tokenizer. Cloning is cheap: the vocabulary is shared.
///
/// Nothing is ever added around a text: no begin or end token, no padding, no truncation.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Treats the text of special tokens as plain text.
    plain: HfTokenizer,
    /// Recognises special tokens in the text.
    special: HfTokenizer,
    table: ByteTable,
    strips_first_space: bool,
    hash: OnceLock<String>,
}

/// The bytes of all tokens, end to end, and what each id is.
struct ByteTable {
    bytes: Vec<u8>,
    /// `starts[id]..starts[id + 1]` are the bytes of `id`.
    starts: Vec<usize>,
    known: Vec<bool>,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Loads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, is not a tokenizer, or has a decoder of an unknown kind.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file_error = |source| Error::File { action: "reading", path: path.into(), source };
        let bytes = std::fs::read(path).map_err(file_error)?;
        let json_error = |reason| Error::Json { path: Some(path.into()), reason };
        let text = String::from_utf8(bytes).map_err(|error| json_error(error.to_string()))?;
        Self::from_json(&text).map_err(|error| match error {
            Error::Json { reason, .. } => json_error(reason),
            other => other,
        })
    }

    /// Reads the text of a `tokenizer.json`. Truncation and padding it may ask for are dropped.
    ///
    /// # Errors
    /// The text is not a tokenizer, or has a decoder of an unknown kind.
    pub fn from_json(json: &str) -> Result<Self> {
        let tokenizer = HfTokenizer::from_bytes(json.as_bytes())
            .map_err(|error| Error::Json { path: None, reason: error.to_string() })?;
        Self::from_hf(tokenizer)
    }

    pub(crate) fn from_hf(mut tokenizer: HfTokenizer) -> Result<Self> {
        let json_error = |reason: String| Error::Json { path: None, reason };
        tokenizer.with_truncation(None).map_err(|error| json_error(error.to_string()))?;
        tokenizer.with_padding(None);
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| json_error(error.to_string()))?;
        let alphabet = Alphabet::from_decoder(&decoder)?;
        let table = ByteTable::new(&tokenizer, &alphabet)?;
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        tokenizer.set_encode_special_tokens(false);
        let strips_first_space = alphabet.strips_first_space();
        let hash = OnceLock::new();
        let inner = Inner { plain, special: tokenizer, table, strips_first_space, hash };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The tokenizer as a `tokenizer.json`, on one line.
    pub fn to_json(&self) -> String {
        let json = self.inner.special.to_string(false);
        json.expect("a tokenizer that was loaded or trained can be written as JSON")
    }

    /// Writes `tokenizer.json`, readable by Hugging Face's library. The file is written beside its
    /// place and then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let beside = path.with_extension("json.partial");
        std::fs::write(&beside, self.to_json())
            .and_then(|()| std::fs::rename(&beside, path))
            .map_err(|source| Error::File { action: "writing", path: path.into(), source })
    }

    /// Number of ids: the largest id plus one, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.table.known.len()
    }

    /// Encodes text as plain text: what looks like a special token stays ordinary characters.
    ///
    /// # Errors
    /// The vocabulary cannot express the text; a byte-level one can express any.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.inner.plain, text)
    }

    /// Encodes text in which the names of special tokens stand for the tokens. For text written by
    /// the program itself, never for text of users.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.inner.special, text)
    }

    /// Encodes many texts as [`encode`](Self::encode) does, on all threads, in order.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for the first group of texts that fails.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let mut ids = Vec::with_capacity(texts.len());
        for group in groups(texts, BATCH_BYTES) {
            let encodings =
                self.inner.plain.encode_batch_fast(group.to_vec(), false).map_err(|error| {
                    Error::Encode { start: start_of(group[0]), reason: error.to_string() }
                })?;
            ids.extend(encodings.iter().map(|encoding| encoding.get_ids().to_vec()));
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens included by name; bytes that are not UTF-8 become U+FFFD
    /// and unknown ids nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// The exact bytes of `ids`, which need not be UTF-8 if a character is cut.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let bytes: Vec<u8> =
            ids.iter().filter_map(|&id| self.bytes_of(id)).flatten().copied().collect();
        self.without_first_space(&bytes).to_vec()
    }

    /// The bytes of one id in the middle of a text; none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.bytes_of(id).map(<[u8]>::to_vec)
    }

    /// The number of text bytes of each id, `[vocab_size]`; 0 for special tokens, which stand for
    /// no text. The weights of bits per byte.
    pub fn byte_lengths(&self) -> Vec<u32> {
        let table = &self.inner.table;
        let length = |id: usize| table.starts[id + 1] - table.starts[id];
        let lengths = (0..table.known.len())
            .map(|id| if table.special[id] { 0 } else { u32::try_from(length(id)).unwrap_or(0) });
        lengths.collect()
    }

    /// The id of a special token, by name.
    pub fn special(&self, name: &str) -> Option<u32> {
        let id = self.inner.special.token_to_id(name)?;
        self.is_special(id).then_some(id)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.table.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The token that ends a document: `<|endoftext|>`, or the name other families give it.
    ///
    /// # Errors
    /// The tokenizer has none.
    pub fn end_of_document(&self) -> Result<u32> {
        END_OF_DOCUMENT.iter().find_map(|name| self.special(name)).ok_or_else(|| {
            Error::MissingSpecial {
                action: "looking for the token that ends a document",
                wanted: END_OF_DOCUMENT.map(str::to_owned).to_vec(),
            }
        })
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// SHA-256 of [`to_json`](Self::to_json), in hexadecimal. Token shards and checkpoints keep it
    /// to refuse another vocabulary.
    pub fn hash(&self) -> String {
        let compute = || {
            let digest = Sha256::digest(self.to_json().as_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        self.inner.hash.get_or_init(compute).clone()
    }

    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.inner.table.get(id as usize)
    }

    pub(crate) fn without_first_space<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match bytes {
            [b' ', rest @ ..] if self.inner.strips_first_space => rest,
            _ => bytes,
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl ByteTable {
    fn new(tokenizer: &HfTokenizer, alphabet: &Alphabet) -> Result<Self> {
        let vocabulary = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if size > 2 * vocabulary.len() + MAX_GAPS {
            let count = vocabulary.len();
            let reason = format!("{count} tokens of which one has id {}", size - 1);
            return Err(Error::Json { path: None, reason });
        }
        let mut tokens: Vec<Option<&str>> = vec![None; size];
        for (token, &id) in &vocabulary {
            tokens[id as usize] = Some(token);
        }
        let mut special = vec![false; size];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            special[id as usize] = token.special;
        }
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        for token in &tokens {
            bytes.extend(token.map(|token| alphabet.bytes(token)).unwrap_or_default());
            starts.push(bytes.len());
        }
        Ok(Self { bytes, starts, known: tokens.iter().map(Option::is_some).collect(), special })
    }

    fn get(&self, id: usize) -> Option<&[u8]> {
        let known = self.known.get(id).copied().unwrap_or(false);
        known.then(|| &self.bytes[self.starts[id]..self.starts[id + 1]])
    }
}

fn encode(tokenizer: &HfTokenizer, text: &str) -> Result<Vec<u32>> {
    match tokenizer.encode_fast(text, false) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(Error::Encode { start: start_of(text), reason: error.to_string() }),
    }
}

fn start_of(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Consecutive texts of about `bytes` bytes; a longer text is a group of its own.
fn groups<'a, 'b>(
    texts: &'a [&'b str],
    bytes: usize,
) -> impl Iterator<Item = &'a [&'b str]> + use<'a, 'b> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fits = |text: &&&str| {
            size += text.len();
            size <= bytes
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (group, after) = rest.split_at(count);
        rest = after;
        (!group.is_empty()).then_some(group)
    })
}
