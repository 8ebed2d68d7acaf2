//! Text to ids.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{Encoding, Token, Tokenizer as HfTokenizer};

use crate::alphabet::escaped_byte;
use crate::pieces::PIECE_BYTES;
use crate::{Error, Result, Tokenizer};

/// Bytes of text that [`Tokenizer::encode_batch`] encodes at a time. The encoder keeps about a
/// hundred bytes of bookkeeping per token until a group is done.
const BATCH_BYTES: usize = PIECE_BYTES;

/// Two texts as the input of a model that reads pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// `[T]`; 0 for the first text and its special tokens, 1 for the second.
    pub type_ids: Vec<u32>,
}

/// A whole text as tokens, including the special tokens around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the end of the text was cut off.
    pub is_cut: bool,
}

/// Special tokens that a model puts around a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Frame {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

impl Frame {
    /// Derives them from the post-processor's output for one token that no vocabulary has.
    pub(crate) fn of(tokenizer: &HfTokenizer) -> Self {
        let marker = Token::new(u32::MAX, "a".to_owned(), (0, 1));
        let encoding = Encoding::from_tokens(vec![marker], 0);
        let Ok(encoding) = tokenizer.post_process(encoding, None, true) else {
            return Self::default();
        };
        let ids = encoding.get_ids();
        match ids.iter().position(|&id| id == u32::MAX) {
            Some(at) => Self { before: ids[..at].to_vec(), after: ids[at + 1..].to_vec() },
            None => Self::default(),
        }
    }
}

impl Tokenizer {
    /// Encodes plain text: the name of a special token stays ordinary characters.
    ///
    /// # Errors
    /// The vocabulary cannot express the text. A byte-level vocabulary can express any text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_long(self.plain(), text)?;
        if self.is_plain(text, &ids) { Ok(ids) } else { self.encode_guarded(text) }
    }

    /// Encodes text in which the names of special tokens stand for the tokens. Use it for text from
    /// the program itself, never for user text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        encode(self.recognising(), text, false)
    }

    /// Encodes plain text with the special tokens that the model saw around it in training, such as
    /// `[CLS] text [SEP]` or `<s> text`: the tokenizer's own post-processor.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_for_model(&self, text: &str) -> Result<Vec<u32>> {
        let frame = self.frame();
        Ok([&frame.before, self.encode(text)?.as_slice(), &frame.after].concat())
    }

    /// Encodes plain text for a model to continue: like
    /// [`encode_for_model`](Self::encode_for_model), without the token that ends a text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.frame().before, self.encode(text)?.as_slice(), self.prompt_suffix()].concat())
    }

    /// Returns the ids with which a document of training text begins: those of
    /// [`encode_prompt`](Self::encode_prompt) for an empty text, such as `<s>` or `[gMASK] <sop>`.
    /// The document is what a model generates after them.
    pub fn document_prefix(&self) -> Vec<u32> {
        [&self.frame().before, self.prompt_suffix()].concat()
    }

    /// The ids after a prompt: those after a text, without the one that ends it.
    fn prompt_suffix(&self) -> &[u32] {
        let after = &self.frame().after;
        let ends = [self.special_ids().eos, self.special_ids().sep];
        match after.split_last() {
            Some((last, rest)) if ends.contains(&Some(*last)) => rest,
            _ => after,
        }
    }

    /// Encodes two plain texts for a model of pairs, such as `[CLS] first [SEP] second [SEP]`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or a text contains the name of a special token that the model
    /// would read as the token (only SentencePiece Unigram models).
    pub fn encode_pair_for_model(&self, first: &str, second: &str) -> Result<EncodedPair> {
        for text in [first, second] {
            if !self.is_plain(text, &encode(self.plain(), text, false)?) {
                return Err(Error::Encode {
                    start: start_of(text),
                    reason: "it holds the name of a special token".to_owned(),
                });
            }
        }
        let encoding = self
            .plain()
            .encode_fast((first, second), true)
            .map_err(|error| Error::Encode { start: start_of(first), reason: error.to_string() })?;
        let (ids, type_ids) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        Ok(EncodedPair { ids, type_ids })
    }

    /// Encodes many texts like [`encode`](Self::encode), in order, on all threads.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for the first group of texts that fails.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let mut ids = Vec::with_capacity(texts.len());
        for group in groups(texts, BATCH_BYTES) {
            if let [long] = group {
                ids.push(self.encode(long)?);
                continue;
            }
            let encodings =
                self.plain().encode_batch_fast(group.to_vec(), false).map_err(|error| {
                    Error::Encode { start: start_of(group[0]), reason: error.to_string() }
                })?;
            for (text, encoding) in group.iter().zip(&encodings) {
                let plain = encoding.get_ids();
                ids.push(if self.is_plain(text, plain) {
                    plain.to_vec()
                } else {
                    self.encode_guarded(text)?
                });
            }
        }
        Ok(ids)
    }

    /// Encodes whole texts for embedders and classifiers: like
    /// [`encode_for_model`](Self::encode_for_model), with each text cut so the result has at most
    /// `max_tokens` ids.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for the first group of texts that fails.
    pub fn encode_framed(&self, texts: &[&str], max_tokens: usize) -> Result<Vec<Framed>> {
        self.encode_around(texts, max_tokens, None)
    }

    /// Like [`encode_framed`](Self::encode_framed), and appends
    /// [`end_of_document`](Self::end_of_document) to each text where the post-processor ends with
    /// another token.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or there is no token that ends a document.
    pub fn encode_ended(&self, texts: &[&str], max_tokens: usize) -> Result<Vec<Framed>> {
        let end = self.end_of_document()?;
        let is_there = self.suffix_ids().last() == Some(&end);
        self.encode_around(texts, max_tokens, (!is_there).then_some(end))
    }

    fn encode_around(
        &self,
        texts: &[&str],
        max_tokens: usize,
        end: Option<u32>,
    ) -> Result<Vec<Framed>> {
        let Frame { before, after } = self.frame();
        let n_added = before.len() + after.len() + usize::from(end.is_some());
        let room = max_tokens.saturating_sub(n_added);
        let framed = self.encode_batch(texts)?.into_iter().map(|mut ids| {
            let is_cut = ids.len() > room;
            ids.truncate(room);
            let around = before.iter().chain(&ids).chain(after).copied().chain(end);
            Framed { ids: around.collect(), is_cut }
        });
        Ok(framed.collect())
    }

    /// Encodes bytes that need not be UTF-8, so [`decode_bytes`](Self::decode_bytes) returns them.
    /// Encodes whole characters like [`encode`](Self::encode), and every other byte as the token
    /// that stands for it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or bytes are not UTF-8 and the vocabulary has no tokens for
    /// bytes.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for chunk in bytes.utf8_chunks() {
            self.encode_chunk(chunk.valid(), &mut ids)?;
            if !chunk.invalid().is_empty() && !self.push_bytes(chunk.invalid(), &mut ids) {
                return Err(Error::Encode {
                    start: String::from_utf8_lossy(chunk.invalid()).into_owned(),
                    reason: "bytes are not UTF-8, and the vocabulary has no tokens for bytes"
                        .to_owned(),
                });
            }
        }
        Ok(ids)
    }

    /// Encodes text for [`encode_bytes`](Self::encode_bytes). Characters that would decode to a
    /// space become byte tokens, where the vocabulary has them.
    fn encode_chunk(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mark = self.alphabet().space_mark().filter(|_| self.high_bytes().is_some());
        let (mark, parts): (&str, Vec<&str>) = match mark {
            Some(mark) => (mark, text.split(mark).collect()),
            None => ("", vec![text]),
        };
        for (index, part) in parts.into_iter().enumerate() {
            if index > 0 {
                self.push_bytes(mark.as_bytes(), ids);
            }
            if !part.is_empty() {
                let at_start = ids.is_empty();
                let more = if at_start { self.encode(part) } else { self.encode_continued(part) };
                ids.extend(more?);
            }
        }
        Ok(())
    }

    /// Appends the ids of bytes from 0x80 on. Returns false if the vocabulary has none.
    fn push_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) -> bool {
        let Some(table) = self.high_bytes() else { return false };
        ids.extend(bytes.iter().filter_map(|&byte| table.get(usize::from(byte & 0x7F))));
        true
    }

    /// Encodes text that continues another, without the space some tokenizers put before a text.
    pub(crate) fn encode_continued(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_long(self.continuing(), text)?;
        if self.is_plain(text, &ids) {
            Ok(ids)
        } else {
            self.encode_pieces(&cut(text, &self.guarded_names()), false)
        }
    }

    /// Whether `ids` is free of tokens that plain text must not become. Some models of the library
    /// look words up in the whole vocabulary, where `</s>` or `<0x41>` is an ordinary word.
    fn is_plain(&self, text: &str, ids: &[u32]) -> bool {
        let unk = self.special_ids().unk;
        let special = ids.iter().any(|&id| self.is_special(id) && Some(id) != unk);
        !special && !self.lookups().words.iter().any(|word| text.contains(word.as_str()))
    }

    /// Encodes a text that contains the name of a special token. Cuts within each name, so the
    /// model never sees it whole.
    fn encode_guarded(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_pieces(&cut(text, &self.guarded_names()), true)
    }

    fn encode_pieces(&self, pieces: &[&str], at_start: bool) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let tokenizer = if index == 0 && at_start { self.plain() } else { self.continuing() };
            let mut more = self.encode_long(tokenizer, piece)?;
            // Unknown text on both sides of a cut is one unknown token.
            let unk = self.lookups().fused_unk;
            if unk.is_some() && ids.last().copied() == unk && more.first().copied() == unk {
                more.remove(0);
            }
            ids.append(&mut more);
        }
        let unk = self.special_ids().unk;
        if let Some(&id) = ids.iter().find(|&&id| self.is_special(id) && Some(id) != unk) {
            return Err(Error::Encode {
                start: start_of(pieces.first().copied().unwrap_or_default()),
                reason: format!("a part of it can only be written as the special token {id}"),
            });
        }
        Ok(ids)
    }

    /// Returns the names that plain text must not become, longest first, in the forms a text may
    /// contain.
    fn guarded_names(&self) -> Vec<String> {
        let tokenizer = self.plain();
        let mut names: Vec<String> = (0..u32::try_from(self.vocab_size()).unwrap_or(u32::MAX))
            .filter_map(|id| {
                let special = self.is_special(id);
                let byte = || self.bytes_of(id).is_some_and(|bytes| bytes.len() == 1);
                if !special && !byte() {
                    return None;
                }
                let name = tokenizer.id_to_token(id)?;
                (special || escaped_byte(&name).is_some()).then(|| name.replace('▁', " "))
            })
            .collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        names
    }
}

/// Cuts `text` after the first character of each name.
fn cut<'a>(text: &'a str, names: &[String]) -> Vec<&'a str> {
    let mut cuts: Vec<usize> = Vec::new();
    for name in names {
        let Some(first) = name.chars().next() else { continue };
        cuts.extend(text.match_indices(name.as_str()).map(|(at, _)| at + first.len_utf8()));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces = Vec::with_capacity(cuts.len() + 1);
    let mut start = 0;
    for end in cuts.into_iter().chain([text.len()]) {
        if start < end {
            pieces.push(&text[start..end]);
        }
        start = end;
    }
    pieces
}

pub(crate) fn encode(tokenizer: &HfTokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    match tokenizer.encode_fast(text, special) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(Error::Encode { start: start_of(text), reason: error.to_string() }),
    }
}

fn start_of(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Behaviour of a model for words that are names in its vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lookups {
    /// Parts of a text that the model may look up whole, although they name tokens that text must
    /// not become. Excludes special tokens, which the ids reveal.
    pub(crate) words: Vec<String>,
    /// The unknown token, if unknown neighbours become one.
    pub(crate) fused_unk: Option<u32>,
}

impl Lookups {
    pub(crate) fn of(tokenizer: &HfTokenizer, unk: Option<u32>) -> Self {
        let byte = || "<0x".to_owned();
        match tokenizer.get_model() {
            ModelWrapper::BPE(model) => Self {
                words: (model.byte_fallback && model.ignore_merges)
                    .then(byte)
                    .into_iter()
                    .collect(),
                fused_unk: unk.filter(|_| model.fuse_unk),
            },
            ModelWrapper::Unigram(model) => {
                let name = unk.and_then(|id| tokenizer.id_to_token(id));
                let bytes = model.byte_fallback().then(byte);
                Self { words: name.into_iter().chain(bytes).collect(), fused_unk: unk }
            }
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => Self::default(),
        }
    }
}

/// Returns `tokenizer` without the steps that put a space before a text.
pub(crate) fn without_prefix(tokenizer: &HfTokenizer) -> HfTokenizer {
    let mut tokenizer = tokenizer.clone();
    let normalizer = tokenizer.get_normalizer().and_then(|n| serde_json::to_value(n).ok());
    if let Some(without) = normalizer.and_then(|mut value| changed(&mut value).then_some(value))
        && let Ok(normalizer) = serde_json::from_value::<tokenizers::NormalizerWrapper>(without)
    {
        // This fails only if a special token cannot be normalised, and these already were.
        let _ = tokenizer.with_normalizer(Some(normalizer));
    }
    let splitter = tokenizer.get_pre_tokenizer().and_then(|p| serde_json::to_value(p).ok());
    if let Some(without) = splitter.and_then(|mut value| changed(&mut value).then_some(value))
        && let Ok(splitter) = serde_json::from_value::<tokenizers::PreTokenizerWrapper>(without)
    {
        tokenizer.with_pre_tokenizer(Some(splitter));
    }
    tokenizer
}

/// Removes prefixes from a normaliser or pre-tokeniser. Returns true if there was one.
fn changed(step: &mut Value) -> bool {
    match step["type"].as_str() {
        Some("Sequence") => {
            let key = if step["normalizers"].is_array() { "normalizers" } else { "pretokenizers" };
            let members = step[key].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
            // All members, not only the first that changes.
            members.iter_mut().map(changed).filter(|&changed| changed).count() > 0
        }
        Some("Prepend") => {
            step["prepend"] = Value::from("");
            true
        }
        Some("Metaspace") => {
            step["prepend_scheme"] = Value::from("never");
            true
        }
        Some("ByteLevel") => {
            step["add_prefix_space"] = Value::from(false);
            true
        }
        _ => false,
    }
}

/// Groups consecutive texts of about `bytes` bytes. A longer text forms its own group.
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
