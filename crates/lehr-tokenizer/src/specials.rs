//! Purposes of special tokens.

use serde_json::Value;

/// The ids of special tokens by purpose; `None` where a tokenizer has no such token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Replaces text that the vocabulary cannot express.
    pub unk: Option<u32>,
    /// Separates two texts.
    pub sep: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
    /// Stands for the whole text in a classifier.
    pub cls: Option<u32>,
    /// Marks the place that a model fills in.
    pub mask: Option<u32>,
    /// Ends a turn of a conversation.
    pub eot: Option<u32>,
}

/// Usual names of these tokens, most specific first, for files that do not name them.
const BOS: &[&str] =
    &["<|begin_of_text|>", "<bos>", "<s>", "<｜begin▁of▁sentence｜>", "<sop>", "<|startoftext|>"];
const EOS: &[&str] = &[
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<eop>",
    "<|endoftext|>",
    "<|im_end|>",
];
const EOT: &[&str] = &["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eot|>", "<|end|>", "<eop>"];

/// Keys of configurations that name these tokens.
const KEYS: [&str; 8] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "eot_token",
];

/// Returns the keys of configurations that name a token by its purpose.
pub(crate) fn roles() -> &'static [&'static str] {
    &KEYS
}

/// Names of tokens that delimit texts and have no other mark.
const DELIMITERS: [&str; 11] = [
    "<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<sep>", "<cls>", "<sop>", "<eop>",
];

/// Whether `name` is written as families write tokens that delimit turns and texts: `<|im_end|>`,
/// `<｜User｜>`, `[INST]`, `<start_of_turn>`, `<s>`.
pub(crate) fn delimits(name: &str) -> bool {
    let within = |start: &str, end: &str| {
        name.len() > start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let word = |inner: &str| {
        let inner = inner.strip_prefix('/').unwrap_or(inner);
        inner.len() > 2 && inner.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    within("<|", "|>")
        || within("<｜", "｜>")
        || within("<start_of_", ">")
        || within("<end_of_", ">")
        || bracketed.is_some_and(word)
        || DELIMITERS.contains(&name)
}

/// Whether `name` cannot be an ordinary word: it is in angle or square brackets.
pub(crate) fn has_special_shape(name: &str) -> bool {
    let within = |start, end| name.starts_with(start) && name.ends_with(end);
    name.chars().nth(2).is_some()
        && !name.contains(char::is_whitespace)
        && (within('<', '>') || within('[', ']'))
}

impl SpecialIds {
    /// All of them.
    pub(crate) fn all(self) -> impl Iterator<Item = u32> {
        let Self { bos, eos, unk, sep, pad, cls, mask, eot } = self;
        [bos, eos, unk, sep, pad, cls, mask, eot].into_iter().flatten()
    }

    /// Fills gaps with the usual names that `find` knows.
    pub(crate) fn or_usual(mut self, find: impl Fn(&str) -> Option<u32>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| find(name));
        self.bos = self.bos.or_else(|| first(BOS));
        self.eos = self.eos.or_else(|| first(EOS));
        self.unk = self.unk.or_else(|| first(&["<unk>", "[UNK]", "<|unk|>"]));
        self.sep = self.sep.or_else(|| first(&["[SEP]", "<sep>"]));
        self.pad = self.pad.or_else(|| first(&["<pad>", "[PAD]", "<|pad|>", "<|endoftext|>"]));
        self.cls = self.cls.or_else(|| first(&["[CLS]", "<cls>"]));
        self.mask = self.mask.or_else(|| first(&["[MASK]", "<mask>"]));
        self.eot = self.eot.or_else(|| first(EOT));
        self
    }

    /// Reads the names in a configuration; `value` returns the value of a key.
    pub(crate) fn from_config<'a>(
        value: impl Fn(&str) -> &'a Value,
        find: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let id = |key: &str| {
            let value = value(key);
            find(value.as_str().or_else(|| value["content"].as_str())?)
        };
        Self {
            bos: id("bos_token"),
            eos: id("eos_token"),
            unk: id("unk_token"),
            sep: id("sep_token"),
            pad: id("pad_token"),
            cls: id("cls_token"),
            mask: id("mask_token"),
            eot: id("eot_token"),
        }
    }

    /// Returns `self`, with gaps filled from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            bos: self.bos.or(other.bos),
            eos: self.eos.or(other.eos),
            unk: self.unk.or(other.unk),
            sep: self.sep.or(other.sep),
            pad: self.pad.or(other.pad),
            cls: self.cls.or(other.cls),
            mask: self.mask.or(other.mask),
            eot: self.eot.or(other.eot),
        }
    }
}
