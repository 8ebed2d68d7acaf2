//! One file per family of architectures: its tensor names on both sides, and the conversions
//! between its `config.json` and GGUF metadata.
//!
//! Metadata keys are those of llama.cpp (`gguf-py/gguf/constants.py` there). Values follow its
//! converter from Hugging Face folders.

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

/// A family in GGUF files.
pub(super) struct Family {
    /// `general.architecture`.
    arch: &'static str,
    /// Its usual name.
    title: &'static str,
    /// A tensor that every file of this family has.
    marker: Option<&'static str>,
    /// Returns whether models with this `config.json` are written as this family.
    writes: fn(&Json) -> bool,
    pub(super) layout: Layout,
    /// Prefixes of tensor names that GGUF cannot store and the models can do without.
    pub(super) left_out: &'static [&'static str],
    /// Computes the `config.json` of a file.
    config: fn(&Settings<'_>) -> Result<Map<String, Json>>,
    /// Computes the metadata from a `config.json`.
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

/// Returns the family of a file.
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

/// Returns the family that writes models with this `config.json`.
pub(super) fn of_config(config: &Json) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| (family.writes)(config)).copied().ok_or_else(|| {
        let found = model_type(config).unwrap_or("missing");
        let known: Vec<_> = FAMILIES.iter().map(|family| family.title).collect();
        let known = known.join(", ");
        if found == "lehr" {
            return own_family(&known);
        }
        let expected =
            format!("a family that GGUF has ({known}); a Hugging Face folder takes every family");
        Error::config("model_type", found, expected)
    })
}

/// Returns the error for lehr's own family.
fn own_family(known: &str) -> Error {
    Error::Unsupported {
        found: "model_type is lehr: lehr's own family, which only lehr reads".to_owned(),
        expected: format!("a family that GGUF has ({known})"),
        hint: "for llama.cpp train with model.kind = \"llama\", for transformers also with \
               \"nanochat\"; lehr itself needs no copy of the model"
            .to_owned(),
    }
}

impl Family {
    /// Computes the `config.json` of a file of this family.
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

    /// Computes the metadata of a model with this `config.json`, and tensors that replace some.
    pub(super) fn describe<'a>(&self, config: &'a Json) -> Result<Keys<'a>> {
        let mut keys = Keys::new(self.arch, config);
        (self.metadata)(&mut keys)?;
        Ok(keys)
    }
}

fn model_type(config: &Json) -> Option<&str> {
    config.get("model_type").and_then(Json::as_str)
}

/// Returns keys and values as a JSON object.
fn object<const N: usize>(pairs: [(&str, Json); N]) -> Map<String, Json> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
