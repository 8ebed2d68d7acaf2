//! The tokenizer: loading, saving, decoding. `encode.rs` has encoding.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use crate::alphabet::Alphabet;
use crate::check;
use crate::encode::{Frame, Lookups, without_prefix};
use crate::specials::has_special_shape;
use crate::table::ByteTable;
use crate::{Error, Result, SpecialIds, StreamDecoder};

/// Usual names of the token that ends a document, most specific first.
const END_OF_DOCUMENT: [&str; 8] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "<eop>",
    "[SEP]",
];

/// A trained tokenizer. Cloning is cheap: the vocabulary is shared.
///
/// Only [`Tokenizer::encode_for_model`], [`Tokenizer::encode_framed`] and
/// [`Tokenizer::encode_ended`] add tokens around a text or cut it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    warnings: Arc<[String]>,
}

struct Inner {
    /// Treats the text of special tokens as plain text.
    plain: HfTokenizer,
    /// Recognises special tokens in the text.
    special: HfTokenizer,
    /// Like `plain`, without the space that some tokenizers put before a text. Created when needed.
    continuing: OnceLock<HfTokenizer>,
    alphabet: Alphabet,
    table: ByteTable,
    frame: Frame,
    special_ids: SpecialIds,
    lookups: Lookups,
    high_bytes: OnceLock<Option<Vec<u32>>>,
    hash: OnceLock<String>,
}

impl Tokenizer {
    /// Loads a Hugging Face `tokenizer.json`. [`open`](Self::open) reads other kinds too.
    ///
    /// # Errors
    /// The file cannot be read, is not a tokenizer, or has a decoder of an unknown kind.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read(path)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::Json { path: None, reason: error.to_string() });
        text.and_then(|text| Self::from_json(&text)).map_err(|error| error.in_file(path))
    }

    /// Reads the text of a `tokenizer.json`. Ignores its truncation and padding.
    ///
    /// # Errors
    /// The text is not a tokenizer, or has a decoder of an unknown kind.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::from_json_with(json, |_| Ok(SpecialIds::default()))
    }

    /// Like [`from_json`](Self::from_json); `adjust` may change the tokenizer and set the purposes
    /// of its special tokens.
    pub(crate) fn from_json_with(
        json: &str,
        adjust: impl FnOnce(&mut HfTokenizer) -> Result<SpecialIds>,
    ) -> Result<Self> {
        let sections = check::tokenizer_json(json)?;
        let known = sections.known(json)?;
        let mut tokenizer = HfTokenizer::from_bytes(known.as_bytes())
            .map_err(|error| Error::Json { path: None, reason: error.to_string() })?;
        let warnings = sections.warnings(&mut tokenizer);
        let special_ids = adjust(&mut tokenizer)?;
        Ok(Self::from_hf(tokenizer, special_ids)?.with_warnings(warnings))
    }

    pub(crate) fn from_hf(mut tokenizer: HfTokenizer, special_ids: SpecialIds) -> Result<Self> {
        let json_error = |reason: String| Error::Json { path: None, reason };
        tokenizer.with_truncation(None).map_err(|error| json_error(error.to_string()))?;
        tokenizer.with_padding(None);
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| json_error(error.to_string()))?;
        let alphabet = Alphabet::from_decoder(&decoder)?;
        let special_ids = with_roles(&mut tokenizer, special_ids)
            .map_err(|error| json_error(error.to_string()))?;
        let table = ByteTable::new(&tokenizer, &alphabet)?;
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        tokenizer.set_encode_special_tokens(false);
        let inner = Inner {
            frame: Frame::of(&plain),
            lookups: Lookups::of(&plain, special_ids.unk),
            plain,
            special: tokenizer,
            continuing: OnceLock::new(),
            alphabet,
            table,
            special_ids,
            high_bytes: OnceLock::new(),
            hash: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner), warnings: Arc::new([]) })
    }

    /// Adds warnings to those of the tokenizer.
    #[must_use]
    pub fn with_warnings(self, more: Vec<String>) -> Self {
        let warnings = self.warnings.iter().cloned().chain(more).collect();
        Self { warnings, ..self }
    }

    /// Returns what its files say that is not used, for the user to know: one sentence for each
    /// file or setting.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the tokenizer as a `tokenizer.json` on one line.
    pub fn to_json(&self) -> String {
        let json = self.inner.special.to_string(false);
        json.expect("a tokenizer that was loaded or trained can be written as JSON")
    }

    /// Writes a `tokenizer.json` that Hugging Face's library reads. Writes a temporary file and
    /// renames it, so a reader never sees half of it.
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
        self.inner.table.size()
    }

    /// Decodes `ids`. Special tokens appear by name, bytes that are not UTF-8 become U+FFFD, and
    /// unknown ids become nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Returns the exact bytes of `ids`, which need not be UTF-8 if a character is cut.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let bytes: Vec<u8> =
            ids.iter().filter_map(|&id| self.bytes_of(id)).flatten().copied().collect();
        let alphabet = self.alphabet();
        alphabet.at_end(alphabet.at_start(&bytes)).to_vec()
    }

    /// Returns the bytes of one id in the middle of a text, or `None` for an id outside the
    /// vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.bytes_of(id).map(<[u8]>::to_vec)
    }

    /// Returns the name of an id in the vocabulary, such as `Ġthe` or `▁the`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.special.id_to_token(id)
    }

    /// Returns the number of text bytes of each id, `[vocab_size]`; 0 for special tokens, which
    /// stand for no text. These are the weights for bits per byte.
    pub fn byte_lengths(&self) -> Vec<u32> {
        let ids = 0..u32::try_from(self.vocab_size()).unwrap_or(u32::MAX);
        let length = |id| self.bytes_of(id).map_or(0, <[u8]>::len);
        ids.map(|id| if self.is_special(id) { 0 } else { u32::try_from(length(id)).unwrap_or(0) })
            .collect()
    }

    /// The id of a token that is found in the text before everything else, special or not, by name.
    pub(crate) fn added(&self, name: &str) -> Option<u32> {
        let added = self.inner.special.get_added_vocabulary().get_vocab();
        added.get(name).copied()
    }

    /// The id of a special token, by name.
    pub fn special(&self, name: &str) -> Option<u32> {
        let id = self.inner.special.token_to_id(name)?;
        self.is_special(id).then_some(id)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.table.is_special(id)
    }

    /// Returns the ids of special tokens by purpose: as the files say, or else by their usual
    /// names.
    pub fn special_ids(&self) -> SpecialIds {
        self.inner.special_ids
    }

    /// The ids that [`encode_for_model`](Self::encode_for_model) puts before a text.
    pub fn prefix_ids(&self) -> &[u32] {
        &self.inner.frame.before
    }

    /// The ids that [`encode_for_model`](Self::encode_for_model) puts after a text.
    pub fn suffix_ids(&self) -> &[u32] {
        &self.inner.frame.after
    }

    /// Whether the model was trained on texts that begin with a special token.
    pub fn add_bos(&self) -> bool {
        !self.prefix_ids().is_empty()
    }

    /// Whether the tokenizer puts a special token after a text.
    pub fn add_eos(&self) -> bool {
        !self.suffix_ids().is_empty()
    }

    /// Returns the token that ends a document: `<|endoftext|>`, or its name in other families.
    ///
    /// # Errors
    /// The tokenizer has none.
    pub fn end_of_document(&self) -> Result<u32> {
        let named = END_OF_DOCUMENT.iter().find_map(|name| self.special(name));
        named.or(self.special_ids().eos).ok_or_else(|| Error::MissingSpecial {
            action: "looking for the token that ends a document",
            wanted: END_OF_DOCUMENT.map(str::to_owned).to_vec(),
        })
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone(), true)
    }

    /// Returns a decoder for ids that continue a text, such as those generated after a prompt. It
    /// keeps a space at their start, which some tokenizers drop at the start of a text.
    pub fn continuing_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone(), false)
    }

    /// SHA-256 of [`to_json`](Self::to_json), in hexadecimal. Token shards and checkpoints store it
    /// to refuse another vocabulary.
    pub fn hash(&self) -> String {
        let compute = || {
            let digest = Sha256::digest(self.to_json().as_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        self.inner.hash.get_or_init(compute).clone()
    }

    /// The encoder that recognises special tokens.
    pub(crate) fn hf(&self) -> &HfTokenizer {
        &self.inner.special
    }

    /// Whether both are clones of one tokenizer.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.inner.table.get(id)
    }

    pub(crate) fn alphabet(&self) -> &Alphabet {
        &self.inner.alphabet
    }

    pub(crate) fn plain(&self) -> &HfTokenizer {
        &self.inner.plain
    }

    pub(crate) fn recognising(&self) -> &HfTokenizer {
        &self.inner.special
    }

    pub(crate) fn continuing(&self) -> &HfTokenizer {
        self.inner.continuing.get_or_init(|| without_prefix(&self.inner.plain))
    }

    pub(crate) fn frame(&self) -> &Frame {
        &self.inner.frame
    }

    pub(crate) fn lookups(&self) -> &Lookups {
        &self.inner.lookups
    }

    /// The ids of the bytes from 0x80 on.
    pub(crate) fn high_bytes(&self) -> Option<&[u32]> {
        self.inner.high_bytes.get_or_init(|| self.inner.table.high_bytes()).as_deref()
    }
}

/// Fills gaps of `ids` with usual names. Makes the tokens special that begin and end texts and
/// turns, or have another purpose: text of users must not become one of them.
fn with_roles(tokenizer: &mut HfTokenizer, ids: SpecialIds) -> tokenizers::Result<SpecialIds> {
    let added = tokenizer.get_added_vocabulary();
    let ids = ids.or_usual(|name| added.get_vocab().get(name).copied());
    let tokens = added.get_added_tokens_decoder();
    let special = |id: u32| match tokens.get(&id) {
        Some(token) if token.special => None,
        Some(token) => Some(AddedToken { special: true, ..token.clone() }),
        None => {
            let name = tokenizer.id_to_token(id).filter(|name| has_special_shape(name))?;
            Some(AddedToken::from(name, true))
        }
    };
    let more: Vec<AddedToken> = ids.all().filter_map(special).collect();
    if !more.is_empty() {
        tokenizer.add_tokens(more)?;
    }
    Ok(ids)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::File {
        action: "reading",
        path: path.into(),
        source,
    })
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
