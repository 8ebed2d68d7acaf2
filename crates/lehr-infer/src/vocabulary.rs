//! The tokenizer and the chat template inside a GGUF file.

use std::cell::RefCell;
use std::collections::BTreeSet;

use lehr_model::io::gguf::{Array, Metadata, Value};
use lehr_tokenizer::chat::TemplateParts;
use lehr_tokenizer::{SpecialIds, TokenType, Tokenizer, VocabParts};

use crate::Result;

/// Keys that change neither ids nor text of a model that generates, by reason.
const WITHOUT_EFFECT: [(&str, &[&str]); 4] = [
    ("other programs read a copy of the whole tokenizer", &["huggingface.json", "rwkv.world"]),
    (
        "marks for filling in, which no command writes",
        &[
            "fim_mid_token_id",
            "fim_pad_token_id",
            "fim_pre_token_id",
            "fim_rep_token_id",
            "fim_sep_token_id",
            "fim_suf_token_id",
            "middle_token_id",
            "prefix_token_id",
            "suffix_token_id",
        ],
    ),
    ("the ids that end a text are read with the template", &["eom_token_id", "eot_token_id"]),
    ("number of segments, which the model's tensors show", &["token_type_count"]),
];

/// Keys of the tokenizer in the metadata, with a record of those that were read.
struct Keys<'m> {
    metadata: &'m Metadata,
    read: RefCell<BTreeSet<String>>,
}

impl<'m> Keys<'m> {
    fn new(metadata: &'m Metadata) -> Self {
        Self { metadata, read: RefCell::default() }
    }

    /// Returns the full name of `key`, which is recorded as read.
    fn at(&self, key: &str) -> String {
        self.read.borrow_mut().insert(key.to_owned());
        format!("tokenizer.ggml.{key}")
    }

    /// Returns a warning of keys that nothing has read.
    fn warning(&self) -> Option<String> {
        let read = self.read.borrow();
        let is_unread = |key: &&str| {
            let name = key.strip_prefix("tokenizer.ggml.").unwrap_or(key);
            let without = |(_, names): &(&str, &[&str])| names.contains(&name);
            key.starts_with("tokenizer.")
                && *key != "tokenizer.chat_template"
                && !read.contains(name)
                && !WITHOUT_EFFECT.iter().any(without)
        };
        let keys = self.metadata.entries().iter().map(|(key, _)| key.as_str());
        let unread: Vec<&str> = keys.filter(is_unread).collect();
        let (is, n) = (if unread.len() == 1 { "key is" } else { "keys are" }, unread.len());
        (n > 0).then(|| format!("GGUF metadata: {n} {is} not used: {}", unread.join(", ")))
    }
}

/// Builds the tokenizer that the metadata of a GGUF file describes. Its warnings name the keys that
/// are not used.
///
/// # Errors
/// If a key does not have the type that GGUF defines, or [`VocabParts::build`] refuses a value.
pub fn gguf_tokenizer(metadata: &Metadata) -> Result<Tokenizer> {
    let keys = Keys::new(metadata);
    let text = |key: &str| metadata.string(&keys.at(key));
    let texts = |key: &str| metadata.strings(&keys.at(key));
    let flag = |key: &str| metadata.boolean(&keys.at(key));
    let integers = |key: &str| metadata.integers(&keys.at(key));
    let floats = |key: &str| metadata.floats(&keys.at(key));
    let id = |key: &str| {
        keys.at(&format!("{key}_token_id"));
        token_id(metadata, key)
    };
    let mut special_ids = SpecialIds::default();
    special_ids.bos = id("bos")?;
    special_ids.eos = id("eos")?;
    special_ids.unk = id("unknown")?;
    // GGUF files spell the key this way.
    special_ids.sep = id("seperator")?;
    special_ids.pad = id("padding")?;
    special_ids.cls = id("cls")?;
    special_ids.mask = id("mask")?;
    special_ids.eot = id("eot")?;
    let types = integers("token_type")?.unwrap_or_default();
    // llama.cpp also treats a token of an unknown type as normal text.
    let kind = |number: i64| i32::try_from(number).ok().and_then(TokenType::from_number);
    let bytes = integers("precompiled_charsmap")?.unwrap_or_default();
    let parts = VocabParts {
        model: text("model")?.unwrap_or_default().to_owned(),
        pre: text("pre")?.map(str::to_owned),
        tokens: texts("tokens")?.unwrap_or_default().to_vec(),
        scores: floats("scores")?.unwrap_or_default().to_vec(),
        token_types: types.into_iter().map(|number| kind(number).unwrap_or_default()).collect(),
        merges: texts("merges")?.unwrap_or_default().to_vec(),
        special_ids,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_sep: flag("add_sep_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
        // Files store signed or unsigned bytes, with the same bits.
        precompiled_charsmap: bytes.into_iter().map(|byte| (byte & 0xFF) as u8).collect(),
        lowercase: flag("normalizer.lowercase")?,
        strip_accents: flag("normalizer.strip_accents")?,
    };
    Ok(parts.build()?.with_warnings(keys.warning().into_iter().collect()))
}

/// Reads the parts of the chat template from the metadata of a GGUF file.
///
/// # Errors
/// If a key does not have the type that GGUF defines.
pub(crate) fn gguf_template_parts(metadata: &Metadata) -> Result<TemplateParts> {
    let mut parts = TemplateParts {
        jinja: metadata.string("tokenizer.chat_template")?.map(str::to_owned),
        family: metadata.string("general.architecture")?.map(str::to_owned),
        ..TemplateParts::default()
    };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    let names = [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")];
    for (key, name) in names {
        let id = token_id(metadata, key)?;
        if let Some(token) = id.and_then(|id| tokens.get(id as usize)) {
            parts.special.insert(format!("{name}_token"), token.as_str().into());
        }
    }
    for key in ["eos", "eot", "eom"] {
        parts.eos_ids.extend(token_id(metadata, key)?);
    }
    Ok(parts)
}

/// `tokenizer.ggml.{key}_token_id`.
fn token_id(metadata: &Metadata, key: &str) -> Result<Option<u32>> {
    let id = metadata.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
    // Some files store −1, or its bits, for a missing token.
    Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX))
}

/// Writes `tokenizer` as metadata of a GGUF file, with a name for each of `vocab_size` rows. The
/// ids that end a turn are not the tokenizer's to say.
///
/// # Errors
/// As [`VocabParts::of`].
pub(crate) fn gguf_vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Metadata> {
    let parts = VocabParts::of(tokenizer, vocab_size)?;
    let mut metadata = Metadata::default();
    let mut set = |key: &str, value: Value| {
        metadata.set(format!("tokenizer.ggml.{key}"), value);
    };
    set("model", parts.model.as_str().into());
    if let Some(pre) = parts.pre {
        set("pre", pre.as_str().into());
    }
    let types: Vec<i32> = parts.token_types.iter().map(|kind| kind.number()).collect();
    set("tokens", Array::String(parts.tokens).into());
    if !parts.scores.is_empty() {
        set("scores", Array::F32(parts.scores).into());
    }
    set("token_type", Array::I32(types).into());
    if !parts.merges.is_empty() {
        set("merges", Array::String(parts.merges).into());
    }
    let ids = parts.special_ids;
    let named = [
        ("bos", ids.bos),
        ("eos", ids.eos),
        ("unknown", ids.unk),
        ("seperator", ids.sep),
        ("padding", ids.pad),
        ("cls", ids.cls),
        ("mask", ids.mask),
    ];
    for (key, id) in named {
        if let Some(id) = id {
            set(&format!("{key}_token_id"), id.into());
        }
    }
    let flags = [
        ("add_bos_token", parts.add_bos),
        ("add_eos_token", parts.add_eos),
        ("add_sep_token", parts.add_sep),
        ("add_space_prefix", parts.add_space_prefix),
        ("remove_extra_whitespaces", parts.remove_extra_whitespaces),
        ("normalizer.lowercase", parts.lowercase),
        ("normalizer.strip_accents", parts.strip_accents),
    ];
    for (key, flag) in flags {
        if let Some(flag) = flag {
            set(key, flag.into());
        }
    }
    if !parts.precompiled_charsmap.is_empty() {
        set("precompiled_charsmap", Array::U8(parts.precompiled_charsmap).into());
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metadata() -> Metadata {
        let mut metadata = Metadata::default();
        metadata.set("tokenizer.ggml.model", "gpt2");
        metadata.set("tokenizer.ggml.pre", "qwen2");
        let tokens = ["a", "b", "ab", "<|im_end|>"].map(str::to_owned).to_vec();
        metadata.set("tokenizer.ggml.tokens", Array::String(tokens));
        metadata.set("tokenizer.ggml.token_type", Array::I32(vec![1, 1, 1, 4]));
        metadata.set("tokenizer.ggml.merges", Array::String(vec!["a b".to_owned()]));
        metadata.set("tokenizer.ggml.eos_token_id", 3_u32);
        metadata.set("tokenizer.ggml.fim_pre_token_id", 3_u32);
        metadata.set("tokenizer.chat_template", "{{ messages }}");
        metadata
    }

    #[test]
    fn metadata_as_published_gives_no_warning_and_roles_are_special() {
        let tokenizer = gguf_tokenizer(&metadata()).unwrap();
        assert_eq!(tokenizer.warnings(), [] as [String; 0]);
        assert_eq!(tokenizer.special("<|im_end|>"), Some(3));
    }

    proptest! {
        #[test]
        fn a_further_key_of_the_tokenizer_is_named(key in "(ggml.)?x_[a-z]{1,8}", n in 0_u32..9) {
            let mut metadata = metadata();
            let key = format!("tokenizer.{key}");
            metadata.set(key.as_str(), n);
            let tokenizer = gguf_tokenizer(&metadata).unwrap();
            prop_assert_eq!(tokenizer.warnings().len(), 1);
            prop_assert!(tokenizer.warnings()[0].contains(&key));
        }
    }
}
