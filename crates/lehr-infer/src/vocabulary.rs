//! The tokenizer inside a GGUF file.

use lehr_model::io::gguf::Metadata;
use lehr_tokenizer::{SpecialIds, TokenType, Tokenizer, VocabParts};

use crate::Result;

/// The tokenizer that the metadata of a GGUF file describes.
///
/// # Errors
/// If a key has another type than GGUF gives it, or [`VocabParts::build`] refuses what they say.
pub fn gguf_tokenizer(metadata: &Metadata) -> Result<Tokenizer> {
    let text = |key: &str| metadata.string(&format!("tokenizer.ggml.{key}"));
    let texts = |key: &str| metadata.strings(&format!("tokenizer.ggml.{key}"));
    let flag = |key: &str| metadata.boolean(&format!("tokenizer.ggml.{key}"));
    let integers = |key: &str| metadata.integers(&format!("tokenizer.ggml.{key}"));
    let id = |key: &str| -> Result<Option<u32>> {
        let id = metadata.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
        // Some files have −1, or its bits, for a token they lack.
        Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX))
    };
    let mut special_ids = SpecialIds::default();
    special_ids.bos = id("bos")?;
    special_ids.eos = id("eos")?;
    special_ids.unk = id("unknown")?;
    // The key is spelt so in files.
    special_ids.sep = id("seperator")?;
    special_ids.pad = id("padding")?;
    special_ids.cls = id("cls")?;
    special_ids.mask = id("mask")?;
    special_ids.eot = id("eot")?;
    let types = integers("token_type")?.unwrap_or_default();
    // A type without a number in GGUF is text like any other to llama.cpp too.
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
        // The list is of signed or unsigned bytes: the same bits.
        precompiled_charsmap: bytes.into_iter().map(|byte| (byte & 0xFF) as u8).collect(),
        lowercase: flag("normalizer.lowercase")?,
        strip_accents: flag("normalizer.strip_accents")?,
    };
    Ok(parts.build()?)
}
