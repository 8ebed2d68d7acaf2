//! BERT's `vocab.txt`: one token per line.

use serde_json::json;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;

use super::assemble::{Added, Assembly, Template};
use super::config::{Config, text_of};
use crate::{Error, Result, SpecialIds, Tokenizer};

const KIND: &str = "BERT vocab.txt";

/// BERT's normalisation of text.
pub(super) struct Rules {
    pub(super) lowercase: bool,
    /// `None` means the same as `lowercase`.
    pub(super) strip_accents: Option<bool>,
    /// Whether each Chinese character is a word.
    pub(super) chinese_characters: bool,
}

impl Tokenizer {
    /// Reads the text of a `vocab.txt`. Its words show whether it is for lower-case text.
    ///
    /// # Errors
    /// The text lacks `[UNK]`, `[CLS]` or `[SEP]`.
    pub fn from_bert_vocab(text: &str) -> Result<Self> {
        from_text(text, &Config::default())
    }
}

/// Like [`Tokenizer::from_bert_vocab`], with the settings of a `tokenizer_config.json`.
pub(super) fn from_text(text: &str, config: &Config) -> Result<Tokenizer> {
    let mut words: Vec<String> =
        text.split('\n').map(|line| line.trim_end_matches('\r').to_owned()).collect();
    if words.last().is_some_and(String::is_empty) {
        words.pop();
    }
    let upper = |word: &String| word.starts_with(|c: char| c.is_ascii_uppercase());
    let rules = Rules {
        lowercase: config["do_lower_case"].as_bool().unwrap_or_else(|| !words.iter().any(upper)),
        strip_accents: config["strip_accents"].as_bool(),
        chinese_characters: config["tokenize_chinese_chars"].as_bool().unwrap_or(true),
    };
    let find = |name: &str| {
        words.iter().position(|word| word == name).and_then(|id| u32::try_from(id).ok())
    };
    let named = |key: &str, usual: &str| find(text_of(&config[key]).unwrap_or(usual));
    let ids = SpecialIds {
        unk: named("unk_token", "[UNK]"),
        cls: named("cls_token", "[CLS]"),
        sep: named("sep_token", "[SEP]"),
        pad: named("pad_token", "[PAD]"),
        mask: named("mask_token", "[MASK]"),
        ..SpecialIds::default()
    };
    from_words(KIND, words, ids, &rules)
}

/// Builds a WordPiece tokenizer of these words; `##` marks those that continue a word.
pub(super) fn from_words(
    kind: &'static str,
    words: Vec<String>,
    ids: SpecialIds,
    rules: &Rules,
) -> Result<Tokenizer> {
    let fail = |reason: String| Error::Import { kind, path: None, reason };
    let name = |id: Option<u32>| id.and_then(|id| Some((words.get(id as usize)?.clone(), id)));
    let missing = |what: &str| fail(format!("it has no {what}"));
    let unk = name(ids.unk).ok_or_else(|| missing("[UNK]"))?.0;
    let cls = name(ids.cls).ok_or_else(|| missing("[CLS]"))?;
    let sep = name(ids.sep).ok_or_else(|| missing("[SEP]"))?;
    let added = [ids.pad, ids.unk, ids.cls, ids.sep, ids.mask]
        .into_iter()
        .filter_map(name)
        .map(|(name, id)| Added::new(id, name, true))
        .collect();
    let vocab: Vocab = words.into_iter().zip(0..).collect();
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(unk)
        .continuing_subword_prefix("##".to_owned())
        .max_input_chars_per_word(100)
        .build()
        .map_err(|error| fail(error.to_string()))?;
    Assembly {
        model: model.into(),
        normalizer: json!({"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": rules.chinese_characters,
            "strip_accents": rules.strip_accents, "lowercase": rules.lowercase}),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        frame: Template { before: vec![cls], after: vec![sep], repeat_before: false },
        added,
        ids,
    }
    .build(kind)
}
