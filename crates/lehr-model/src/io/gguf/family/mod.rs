//! One file per family of architectures: its tensors under both names, its `config.json` from the
//! metadata of a GGUF file, and that metadata from its `config.json`.
//!
//! The keys of metadata are those of llama.cpp (`gguf-py/gguf/constants.py` there), and what is
//! written where is what its converter from Hugging Face folders writes.

mod bert;
mod gemma3;
mod glm;
mod gpt2;
mod keys;
mod llama;
mod qwen;
mod rope;
mod settings;

pub(super) use keys::Keys;
use serde_json::{Map, Value as Json};
pub(super) use settings::Settings;

use super::names::Layout;
use crate::{Error, Result};

/// A family as GGUF files know it.
pub(super) struct Family {
    /// `general.architecture`.
    arch: &'static str,
    /// What people call it.
    title: &'static str,
    /// A tensor without which a file of this architecture is of another family.
    marker: Option<&'static str>,
    /// Whether models with this `config.json` are written as this family.
    writes: fn(&Json) -> bool,
    pub(super) layout: Layout,
    /// Beginnings of our names of tensors that GGUF has no place for and the models can do without.
    pub(super) left_out: &'static [&'static str],
    /// The `config.json` of a file.
    config: fn(&Settings<'_>) -> Result<Map<String, Json>>,
    /// The metadata of a `config.json`.
    metadata: fn(&mut Keys<'_>) -> Result<()>,
}

const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gemma3::FAMILY,
    &gpt2::FAMILY,
    &glm::CHATGLM2,
    &glm::GLM,
    &glm::GLM4,
    &bert::FAMILY,
];

/// The family of a file.
pub(super) fn of_file(file: &Settings<'_>) -> Result<&'static Family> {
    let fits = |family: &&&Family| {
        family.arch == file.arch && family.marker.is_none_or(|marker| file.has_tensor(marker))
    };
    FAMILIES.iter().find(fits).copied().ok_or_else(|| {
        let mut known: Vec<_> = FAMILIES.iter().map(|family| family.arch).collect();
        known.dedup();
        Error::config("general.architecture", file.arch, format!("one of {}", known.join(", ")))
    })
}

/// The family as which a model with this `config.json` is written.
pub(super) fn of_config(config: &Json) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| (family.writes)(config)).copied().ok_or_else(|| {
        let found = model_type(config).unwrap_or("missing");
        let known: Vec<_> = FAMILIES.iter().map(|family| family.title).collect();
        let known = known.join(", ");
        let expected =
            format!("a family that GGUF has ({known}); a Hugging Face folder takes every family");
        Error::config("model_type", found, expected)
    })
}

impl Family {
    /// The `config.json` of a file of this family.
    pub(super) fn config_json(&self, file: &Settings<'_>) -> Result<Json> {
        let mut config = (self.config)(file)?;
        for (key, token) in
            [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")]
        {
            let id = file.header.metadata.integer(&format!("tokenizer.ggml.{token}_token_id"))?;
            config.insert(key.to_owned(), id.map_or(Json::Null, Json::from));
        }
        Ok(config.into())
    }

    /// The metadata of a model with this `config.json`, and tensors that take the place of some.
    pub(super) fn describe<'a>(&self, config: &'a Json) -> Result<Keys<'a>> {
        let mut keys = Keys::new(self.arch, config);
        (self.metadata)(&mut keys)?;
        Ok(keys)
    }
}

fn model_type(config: &Json) -> Option<&str> {
    config.get("model_type").and_then(Json::as_str)
}

/// Keys and values of a JSON object.
fn object<const N: usize>(pairs: [(&str, Json); N]) -> Map<String, Json> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
