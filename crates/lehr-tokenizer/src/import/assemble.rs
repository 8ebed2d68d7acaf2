//! Putting a tokenizer together from its parts.

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer as HfTokenizer,
};

use crate::{Error, Result, SpecialIds, Tokenizer};

/// A token that is found in the text before everything else.
#[derive(Debug, Clone)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) name: String,
    /// Whether only the program may write it. Otherwise user text becomes this token too.
    pub(super) special: bool,
    /// Whether to find it after normalisation, which changes its own name too.
    pub(super) normalized: bool,
    /// Whether it takes the white space before it.
    pub(super) lstrip: bool,
    /// Whether it takes the white space after it.
    pub(super) rstrip: bool,
    /// Whether it is found only between words.
    pub(super) single_word: bool,
}

impl Added {
    /// A token that is found wherever its name stands.
    pub(super) fn new(id: u32, name: impl Into<String>, special: bool) -> Self {
        let (lstrip, rstrip, single_word) = (false, false, false);
        Self { id, name: name.into(), special, normalized: false, lstrip, rstrip, single_word }
    }

    /// A token with the settings of a file.
    pub(super) fn of(token: AddedToken, id: u32) -> Self {
        let AddedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
        Self { id, name: content, special, normalized, lstrip, rstrip, single_word }
    }

    fn token(&self) -> AddedToken {
        let &Self { special, normalized, lstrip, rstrip, single_word, .. } = self;
        let content = self.name.clone();
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }
}

/// The parts of a tokenizer, named as in tokenizer.json.
pub(super) struct Assembly {
    pub(super) model: ModelWrapper,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    /// Names and ids before and after a text; the first of a pair is `pair_separator` apart.
    pub(super) frame: Template,
    pub(super) added: Vec<Added>,
    pub(super) ids: SpecialIds,
}

/// The special tokens around a text.
#[derive(Debug, Clone, Default)]
pub(super) struct Template {
    pub(super) before: Vec<(String, u32)>,
    pub(super) after: Vec<(String, u32)>,
    /// Whether the second text of a pair has `before` too (`<s> a <s> b`), or only `after`
    /// (`[CLS] a [SEP] b [SEP]`).
    pub(super) repeat_before: bool,
}

impl Assembly {
    /// The tokenizer. `kind` is what the error messages call the file.
    pub(super) fn build(self, kind: &'static str) -> Result<Tokenizer> {
        let refuse = |reason: String| Error::Import { kind, path: None, reason };
        let mut tokenizer = HfTokenizer::new(self.model);
        if !self.normalizer.is_null() {
            let normalizer: NormalizerWrapper = part(self.normalizer).map_err(refuse)?;
            tokenizer
                .with_normalizer(Some(normalizer))
                .map_err(|error| refuse(error.to_string()))?;
        }
        if !self.pre_tokenizer.is_null() {
            let splitter: PreTokenizerWrapper = part(self.pre_tokenizer).map_err(refuse)?;
            tokenizer.with_pre_tokenizer(Some(splitter));
        }
        let decoder: DecoderWrapper = part(self.decoder).map_err(refuse)?;
        tokenizer.with_decoder(Some(decoder));
        if let Some(template) = self.frame.processor() {
            let processor: PostProcessorWrapper = part(template).map_err(refuse)?;
            tokenizer.with_post_processor(Some(processor));
        }
        let tokens: Vec<AddedToken> =
            self.added.iter().filter(|token| !token.name.is_empty()).map(Added::token).collect();
        tokenizer.add_tokens(tokens).map_err(|error| refuse(error.to_string()))?;
        Tokenizer::from_hf(tokenizer, self.ids).map_err(|error| match error {
            Error::Json { reason, .. } => refuse(reason),
            other => other,
        })
    }
}

impl Template {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// The post-processor that adds these tokens.
    pub(super) fn processor(&self) -> Option<Value> {
        if self.is_empty() {
            return None;
        }
        let tokens = |names: &[(String, u32)], kind: u32| -> Vec<Value> {
            names
                .iter()
                .map(|(name, _)| json!({"SpecialToken": {"id": name, "type_id": kind}}))
                .collect()
        };
        let text = |id: &str, kind: u32| vec![json!({"Sequence": {"id": id, "type_id": kind}})];
        let single = [tokens(&self.before, 0), text("A", 0), tokens(&self.after, 0)].concat();
        let again = if self.repeat_before { tokens(&self.before, 1) } else { Vec::new() };
        let second = [again, text("B", 1), tokens(&self.after, 1)].concat();
        let pair = [single.clone(), second].concat();
        let special: serde_json::Map<String, Value> = self
            .before
            .iter()
            .chain(&self.after)
            .map(|(name, id)| (name.clone(), json!({"id": name, "ids": [id], "tokens": [name]})))
            .collect();
        Some(json!({"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": special}))
    }
}

fn part<T: serde::de::DeserializeOwned>(value: Value) -> std::result::Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// A chain of normalisers or pre-tokenisers; `key` is the name of its members.
pub(super) fn sequence(key: &str, mut members: Vec<Value>) -> Value {
    match members.len() {
        0 => Value::Null,
        1 => members.remove(0),
        _ => json!({"type": "Sequence", key: members}),
    }
}

/// The decoder of byte-level vocabularies.
pub(super) fn byte_level_decoder() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

/// The pre-tokeniser of GPT-2, which may put a space before each text.
pub(super) fn byte_level(prefix: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true,
        "use_regex": true})
}

/// The pre-tokeniser of byte-level vocabularies: cuts by each pattern in turn, then writes bytes.
pub(super) fn byte_level_splits(patterns: &[&str]) -> Value {
    let mut members: Vec<Value> = patterns.iter().map(|pattern| split(pattern)).collect();
    members.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false}));
    sequence("pretokenizers", members)
}

/// Cuts text into what `pattern` matches and what lies between.
pub(super) fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// Replaces one string by another.
pub(super) fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}
