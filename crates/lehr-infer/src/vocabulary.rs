//! The tokenizer and the chat template inside a GGUF file.

use lehr_model::io::gguf::{Array, Metadata, Value};
use lehr_tokenizer::chat::TemplateParts;
use lehr_tokenizer::{SpecialIds, TokenType, Tokenizer, VocabParts};

use crate::Result;

/// Builds the tokenizer that the metadata of a GGUF file describes.
///
/// # Errors
/// If a key does not have the type that GGUF defines, or [`VocabParts::build`] refuses a value.
pub fn gguf_tokenizer(metadata: &Metadata) -> Result<Tokenizer> {
    let text = |key: &str| metadata.string(&format!("tokenizer.ggml.{key}"));
    let texts = |key: &str| metadata.strings(&format!("tokenizer.ggml.{key}"));
    let flag = |key: &str| metadata.boolean(&format!("tokenizer.ggml.{key}"));
    let integers = |key: &str| metadata.integers(&format!("tokenizer.ggml.{key}"));
    let id = |key: &str| token_id(metadata, key);
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
        scores: metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default().to_vec(),
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
    Ok(parts.build()?)
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
