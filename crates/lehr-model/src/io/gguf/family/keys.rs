//! Building GGUF metadata from a `config.json`.

use serde_json::Value as Json;

use super::settings::ROPE_FACTORS;
use crate::io::gguf::metadata::{Metadata, Value};
use crate::io::gguf::names::Heads;
use crate::{Error, Result};

/// The metadata of one model under construction.
pub(in crate::io::gguf) struct Keys<'a> {
    arch: &'static str,
    config: &'a Json,
    /// Pairs so far.
    pub(in crate::io::gguf) metadata: Metadata,
    /// Tensors that a file has and the model does not.
    pub(in crate::io::gguf) tensors: Vec<(String, Vec<f32>)>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(arch: &'static str, config: &'a Json) -> Self {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", arch);
        metadata.set("general.type", "model");
        Self { arch, config, metadata, tensors: Vec::new() }
    }

    pub(super) fn config(&self) -> &'a Json {
        self.config
    }

    /// Sets a key of the architecture.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.metadata.set(format!("{}.{name}", self.arch), value);
    }

    /// Adds the divisors of rotary frequencies.
    pub(super) fn set_rope_factors(&mut self, factors: Vec<f32>) {
        self.tensors.push((ROPE_FACTORS.to_owned(), factors));
    }

    fn get(&self, key: &str) -> Option<&'a Json> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Error::config(key, value, expected))
    }

    /// Returns an integer of the configuration. Files store it in 32 bits.
    pub(super) fn integer(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer below 2^32", |value| value.as_u64()?.try_into().ok())
    }

    /// Returns an integer that the configuration must have.
    pub(super) fn need_integer(&self, key: &str) -> Result<u32> {
        self.integer(key)?.ok_or_else(|| Error::config(key, "missing", "an integer"))
    }

    /// Returns a float of the configuration.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Json::as_f64)
    }

    /// Returns a text of the configuration.
    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Json::as_str)
    }

    /// Copies integers, given by their names in the file and in the configuration.
    pub(super) fn copy_integers(&mut self, names: &[(&str, &str)]) -> Result<()> {
        for (ggml, ours) in names {
            let value = self.need_integer(ours)?;
            self.set(ggml, value);
        }
        Ok(())
    }

    /// Copies a float.
    pub(super) fn copy_float(&mut self, ggml: &str, ours: &str) -> Result<()> {
        let value = self.float(ours)?;
        let value = value.ok_or_else(|| Error::config(ours, "missing", "a number"))?;
        self.set(ggml, value as f32);
        Ok(())
    }

    /// Checks that the configuration has one of these texts, because files cannot store it.
    pub(super) fn require(&self, key: &str, known: &[&str]) -> Result<()> {
        match self.string(key)? {
            Some(found) if !known.contains(&found) => {
                let expected = format!("{}, as all {} files have it", known[0], self.arch);
                Err(Error::config(key, found, expected))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a switch has the value that all files of the architecture imply.
    pub(super) fn require_switch(&self, key: &str, expected: bool) -> Result<()> {
        match self.get(key).and_then(Json::as_bool) {
            Some(found) if found != expected => {
                let expected = format!("{expected}, as all {} files have it", self.arch);
                Err(Error::config(key, found, expected))
            }
            _ => Ok(()),
        }
    }

    /// Returns the width of a head, given or implied by the width of the model.
    pub(super) fn head_dim(&self) -> Result<u32> {
        let heads = self.need_integer("num_attention_heads")?.max(1);
        let implied = self.need_integer("hidden_size")? / heads;
        Ok(self.integer("head_dim")?.unwrap_or(implied))
    }

    /// Returns the numbers of query and key heads.
    pub(in crate::io::gguf) fn heads(&self) -> Result<Heads> {
        let get = |name: &str| self.metadata.integer(&format!("{}.{name}", self.arch));
        let query = get("attention.head_count")?.unwrap_or(1);
        let key = get("attention.head_count_kv")?.unwrap_or(query);
        Ok(Heads { query: query as usize, key: key as usize })
    }
}
