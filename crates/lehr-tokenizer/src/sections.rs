//! The sections of a `tokenizer.json`, for comparison with what the library read of them.

use std::borrow::Cow;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as HfTokenizer;
use tokenizers::models::ModelWrapper;

use crate::keys::{dropped, not_used};
use crate::{Error, Result};

/// Sections that the library reads. `truncation` and `padding` are not used: each command cuts and
/// pads by itself, and says so.
pub(crate) const SECTIONS: [&str; 9] = [
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
];
/// Settings of an added token.
const OF_ADDED: [&str; 7] =
    ["id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"];
/// Settings of all models, which have the vocabulary under names of their own.
const OF_MODEL: [&str; 3] = ["type", "vocab", "merges"];
const OF_BPE: [&str; 7] = [
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
];
const OF_WORDPIECE: [&str; 3] =
    ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word"];
const OF_WORDLEVEL: [&str; 1] = ["unk_token"];
const OF_UNIGRAM: [&str; 2] = ["unk_id", "byte_fallback"];

/// Settings that older files repeat under another name.
const REPEATED: [&str; 2] = [".str_rep", ".add_prefix_space"];

/// Known kinds of each section.
const KINDS: [(&str, &[&str]); 5] = [
    (
        "normalizer",
        &[
            "BertNormalizer",
            "Strip",
            "StripAccents",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Sequence",
            "Lowercase",
            "Nmt",
            "Precompiled",
            "Replace",
            "Prepend",
            "ByteLevel",
        ],
    ),
    (
        "pre_tokenizer",
        &[
            "BertPreTokenizer",
            "ByteLevel",
            "CharDelimiterSplit",
            "Delimiter",
            "Metaspace",
            "Whitespace",
            "Sequence",
            "Split",
            "Punctuation",
            "WhitespaceSplit",
            "Digits",
            "UnicodeScripts",
            "FixedLength",
        ],
    ),
    (
        "post_processor",
        &["RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence"],
    ),
    ("model", &["BPE", "WordPiece", "WordLevel", "Unigram"]),
    // Not all of these are supported; the reader of decoders has an error of its own.
    (
        "decoder",
        &[
            "BPEDecoder",
            "ByteLevel",
            "WordPiece",
            "Metaspace",
            "CTC",
            "Sequence",
            "Replace",
            "Fuse",
            "Strip",
            "ByteFallback",
        ],
    ),
];

/// Returns a fault if the kind of a step of `section` is not known.
pub(crate) fn unknown_kind(section: &str, kind: Option<&str>) -> Option<String> {
    let (_, known) = KINDS.iter().find(|(name, _)| *name == section)?;
    // Files of the first versions have no kinds.
    let kind = kind.filter(|kind| !known.contains(kind))?;
    Some(format!("the kind {kind:?} is not known, expected one of {}", known.join(", ")))
}

/// The sections as they are written, without vocabulary and merges.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) post_processor: Value,
    pub(crate) decoder: Value,
    pub(crate) added_tokens: Value,
    /// Settings of the model.
    pub(crate) model: Map<String, Value>,
    /// Names of further sections.
    pub(crate) unknown: Vec<String>,
}

impl Sections {
    /// Returns `json` without unknown sections, which the library refuses.
    pub(crate) fn known<'a>(&self, json: &'a str) -> Result<Cow<'a, str>> {
        if self.unknown.is_empty() {
            return Ok(Cow::Borrowed(json));
        }
        let fault =
            |error: serde_json::Error| Error::Json { path: None, reason: error.to_string() };
        let mut all: Map<String, Value> = serde_json::from_str(json).map_err(fault)?;
        all.retain(|name, _| SECTIONS.contains(&name.as_str()));
        Ok(Cow::Owned(Value::Object(all).to_string()))
    }

    /// Returns warnings of what the library did not read, and switches off what belongs to
    /// training only.
    pub(crate) fn warnings(&self, tokenizer: &mut HfTokenizer) -> Vec<String> {
        let mut unused = self.unknown.clone();
        let part = |value: serde_json::Result<Value>| value.unwrap_or_default();
        for (name, given, kept) in [
            (
                "normalizer",
                &self.normalizer,
                part(serde_json::to_value(tokenizer.get_normalizer())),
            ),
            (
                "pre_tokenizer",
                &self.pre_tokenizer,
                part(serde_json::to_value(tokenizer.get_pre_tokenizer())),
            ),
            (
                "post_processor",
                &self.post_processor,
                part(serde_json::to_value(tokenizer.get_post_processor())),
            ),
            ("decoder", &self.decoder, part(serde_json::to_value(tokenizer.get_decoder()))),
        ] {
            dropped(name, given, &kept, &mut unused);
        }
        unused.retain(|key| !REPEATED.iter().any(|name| key.ends_with(name)));
        for (index, token) in self.added_tokens.as_array().into_iter().flatten().enumerate() {
            let keys = token.as_object().into_iter().flat_map(Map::keys);
            let unknown = keys.filter(|key| !OF_ADDED.contains(&key.as_str()));
            unused.extend(unknown.map(|key| format!("added_tokens[{index}].{key}")));
        }
        let known: &[&str] = match tokenizer.get_model() {
            ModelWrapper::BPE(_) => &OF_BPE,
            ModelWrapper::WordPiece(_) => &OF_WORDPIECE,
            ModelWrapper::WordLevel(_) => &OF_WORDLEVEL,
            ModelWrapper::Unigram(_) => &OF_UNIGRAM,
        };
        for (key, value) in &self.model {
            let is_known = known.contains(&key.as_str()) || OF_MODEL.contains(&key.as_str());
            if !is_known && !value.is_null() {
                unused.push(format!("model.{key}"));
            }
        }
        let mut all: Vec<String> = not_used("tokenizer.json", &unused).into_iter().collect();
        all.extend(without_dropout(tokenizer));
        all
    }
}

/// Makes a BPE model merge always. Dropout skips merges at random, which only training wants.
fn without_dropout(tokenizer: &mut HfTokenizer) -> Option<String> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let dropout = model.dropout.filter(|&dropout| dropout > 0.0)?;
    let mut model = model.clone();
    model.dropout = None;
    tokenizer.with_model(model);
    Some(format!("tokenizer.json: model.dropout is {dropout}, which is not used: all merges apply"))
}
