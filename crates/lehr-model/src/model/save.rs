//! Saving models, and merging their adapters.

use std::collections::HashMap;
use std::path::Path;

use lehr_tensor::{Named, Role, Shape, Source, StoredShape};

use super::Model;
use crate::io::gguf::{GgufOptions, GgufSummary};
use crate::io::{self, FloatFormat};
use crate::{Error, Result};

impl Model {
    /// Builds an equivalent model on the CPU with its adapters merged. An adapted matrix becomes
    /// f32; other weights keep their format, stored ones included.
    ///
    /// # Errors
    /// If an adapter belongs to a head tied to the embedding (merging would change both), the model
    /// has a learned prefix, or memory runs out.
    pub fn merged(&self) -> Result<Self> {
        self.check_no_prefix("merging adapters")?;
        let weights = self.params.named();
        let by_name: HashMap<&str, &Named<'_>> =
            weights.iter().map(|weight| (weight.name(), weight)).collect();
        let mut adapters = HashMap::new();
        for adapted in &self.adapters {
            let path = &adapted.path;
            let name = format!("{path}.weight");
            if !by_name.contains_key(&*name) {
                let found =
                    format!("`{path}` is tied to the embedding, which would change with it");
                let hint = "adapt other layers, or use the model with its adapters unmerged";
                return Err(Error::adapter("merging adapters", found, hint));
            }
            adapters.insert(name, adapted);
        }
        let load = |name: &str, _: Shape| {
            let weight = by_name.get(name).ok_or_else(|| "the model lacks it".to_owned())?;
            let merged = || match adapters.get(name) {
                Some(adapted) => adapted.merge(&weight.to_host()?),
                None => weight.to_host(),
            };
            merged().and_then(|value| value.duplicate()).map(Some).map_err(|e| e.to_string())
        };
        let stored = |name: &str, _: StoredShape, _: Role| {
            let kept = by_name.get(name).filter(|_| !adapters.contains_key(name));
            kept.and_then(|weight| weight.stored()).cloned()
        };
        let source = Source::Load { load: &load, stored: Some(&stored), seed: 0 };
        Self::build_as(self.config.clone(), &source, self.has_head())
    }

    /// Writes `config.json` and the weights in f32 into `dir`, in the format of `transformers`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, FloatFormat::F32)
    }

    /// Saves the model like [`Model::save`], in any float format: as `model.safetensors`, or as
    /// numbered files with an index if the weights take more than 5 GB. Only one weight at a time
    /// is in memory in f32.
    ///
    /// # Errors
    /// If a value does not fit the format or a file cannot be written.
    pub fn save_as(&self, dir: &Path, format: FloatFormat) -> Result<()> {
        self.check_plain("writing the model")?;
        let mut config = self.config.to_json();
        if !self.has_head() {
            let class = self.config.class();
            let family = class.strip_suffix("ForCausalLM").or(class.strip_suffix("LMHeadModel"));
            if let Some(family) = family {
                config["architectures"] = vec![format!("{family}Model")].into();
            }
        }
        io::write_folder(dir, &self.params, config, format)
    }

    /// Writes a GGUF file that llama.cpp loads. It is written piece by piece to a temporary file,
    /// then renamed.
    ///
    /// # Errors
    /// If GGUF cannot represent the family or one of its settings, a value does not fit the format,
    /// or the file cannot be written.
    pub fn save_gguf(&self, path: &Path, options: &GgufOptions<'_>) -> Result<GgufSummary> {
        self.check_plain("writing the model")?;
        let (config, spec) = (self.config.to_json(), self.spec());
        io::gguf::write_gguf(path, (&config, &spec), &self.params, options)
    }

    /// Checks that the model has neither adapters nor a learned prefix, which files of whole models
    /// cannot store.
    pub(crate) fn check_plain(&self, doing: &'static str) -> Result<()> {
        self.check_no_prefix(doing)?;
        match self.adapters.len() {
            0 => Ok(()),
            n => Err(Error::adapter(
                doing,
                format!("{n} of its layers have adapters, which the file has no place for"),
                "merge them first",
            )),
        }
    }

    fn check_no_prefix(&self, doing: &'static str) -> Result<()> {
        match self.kv_prefix_len() {
            0 => Ok(()),
            n => Err(Error::adapter(
                doing,
                format!("the model has a learned prefix of {n} positions, which no matrix holds"),
                "save the trained parameters beside the base",
            )),
        }
    }
}
