//! Where models go: files, and one model without adapters.

use std::collections::HashMap;
use std::path::Path;

use lehr_tensor::{Named, Role, Shape, Source, StoredShape};

use super::Model;
use crate::io::gguf::{GgufOptions, GgufSummary};
use crate::io::{self, FloatFormat};
use crate::{Error, Result};

impl Model {
    /// A model on the CPU without adapters that computes the same: each adapter is merged into its
    /// layer's matrix, which is then in f32. Other weights stay as they are, stored ones included.
    ///
    /// # Errors
    /// If an adapter belongs to a head that is tied to the embedding, which would change with it,
    /// if there is a learned prefix, or memory runs out.
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
        Self::build(self.config.clone(), &source)
    }

    /// Writes `config.json` and the weights in f32 into `dir`, which `transformers` loads.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, FloatFormat::F32)
    }

    /// [`Model::save`] in any float format: `model.safetensors`, or numbered files with an index if
    /// the weights take more than 5 GB. One weight at a time is in memory in f32.
    ///
    /// # Errors
    /// If a number does not fit the format or a file cannot be written.
    pub fn save_as(&self, dir: &Path, format: FloatFormat) -> Result<()> {
        self.check_plain("writing the model")?;
        io::write_folder(dir, &self.params, self.config.to_json(), format)
    }

    /// Writes a GGUF file that llama.cpp loads, piece by piece, beside its place first.
    ///
    /// # Errors
    /// If GGUF has no place for the family or one of its settings, a number does not fit the
    /// format, or the file cannot be written.
    pub fn save_gguf(&self, path: &Path, options: &GgufOptions<'_>) -> Result<GgufSummary> {
        self.check_plain("writing the model")?;
        let (config, spec) = (self.config.to_json(), self.spec());
        io::gguf::write_gguf(path, (&config, &spec), &self.params, options)
    }

    /// An error if there are adapters or a learned prefix: files of whole models have no place for
    /// them.
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
