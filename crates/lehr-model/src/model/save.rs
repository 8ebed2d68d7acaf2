//! Saving models, and merging their adapters.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use lehr_tensor::{Named, Role, Shape, Source, StoredShape};

use super::Model;
use crate::io::gguf::{GgufOptions, GgufSummary};
use crate::io::{self, Checkpoint, Extra, FloatFormat, FolderContents};
use crate::{ConfigFile, Error, Result};

/// Endings of the names of buffers that old files contain and the configuration determines, with
/// their numbers of dimensions: rotary frequencies, causal masks, numbers of positions.
const BUFFERS: [(&str, usize); 6] = [
    ("rotary_emb.inv_freq", 1),
    ("rotary_pos_emb.inv_freq", 1),
    (".attn.bias", 4),
    (".attn.masked_bias", 0),
    ("embeddings.position_ids", 2),
    ("rope_freqs.weight", 1),
];

/// Parts of a folder that a copy keeps although the model does not use them.
#[derive(Clone, Copy, Default)]
pub struct ModelCopy<'a> {
    /// The text of the other folder's `config.json`.
    pub config: Option<&'a str>,
    /// Tensors of the other folder to write with the weights.
    pub extra: Option<(&'a Checkpoint, &'a [String])>,
}

/// Returns whether `name` is a head with the values of the embedding `other`.
fn is_tied_head(checkpoint: &Checkpoint, name: &str, other: &str) -> bool {
    let is_head = ["lm_head.weight", "decoder.weight", "output_layer.weight", "decoder.bias"];
    let shape = checkpoint.shape(name).unwrap_or_default();
    if !is_head.iter().any(|end| name.ends_with(end)) || checkpoint.shape(other) != Some(shape) {
        return false;
    }
    let values = |name: &str| checkpoint.tensor(name, shape.into()).ok();
    values(name).zip(values(other)).is_some_and(|(a, b)| a.data() == b.data())
}

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
        self.save_copy(dir, format, &ModelCopy::default()).map(drop)
    }

    /// Saves the model like [`Model::save_as`], as the copy of another folder.
    ///
    /// # Errors
    /// As [`Model::save_as`], and if the other folder's `config.json` is not this model's or a
    /// tensor does not contain floats. Returns the keys of that file that the copy does not have.
    pub fn save_copy(
        &self,
        dir: &Path,
        format: FloatFormat,
        copy: &ModelCopy<'_>,
    ) -> Result<Vec<String>> {
        self.check_plain("writing the model")?;
        let mut own = self.config.to_json();
        if !self.has_head() {
            let class = self.config.class();
            let family = class.strip_suffix("ForCausalLM").or(class.strip_suffix("LMHeadModel"));
            if let Some(family) = family {
                own["architectures"] = vec![format!("{family}Model")].into();
            }
        }
        own["dtype"] = format.torch_name().into();
        let (config, left_out) = match copy.config {
            Some(source) => {
                let file = ConfigFile::like(source, &own)?;
                (file.json.to_text(), file.left_out)
            }
            None => (format!("{own:#}\n"), Vec::new()),
        };
        let mut extra = Vec::new();
        if let Some((checkpoint, names)) = copy.extra {
            for name in names {
                let shape = checkpoint.shape(name).unwrap_or_default().into();
                extra.push(Extra { checkpoint, name, shape });
            }
        }
        let (params, config) = (&self.params, &*config);
        io::write_folder(dir, &FolderContents { params, extra: &extra, config, format })?;
        Ok(left_out)
    }

    /// Lists the tensors of `checkpoint` that this model, loaded from it, does not use, without
    /// those that carry nothing: buffers that follow from the configuration, and copies of a tied
    /// embedding.
    #[must_use]
    pub fn unused_tensors(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let used: HashSet<String> = self
            .params
            .named()
            .iter()
            .flat_map(|weight| {
                let names = self.config.checkpoint_names(weight.name());
                names.into_iter().find(|name| checkpoint.has(name))
            })
            .collect();
        let is_buffer = |name: &str| {
            let n_dims = checkpoint.shape(name).unwrap_or_default().len();
            BUFFERS.iter().any(|(end, n)| name.ends_with(end) && *n == n_dims)
        };
        let of_use = |name: &&str| {
            !used.contains(*name)
                && !is_buffer(name)
                && !used.iter().any(|other| is_tied_head(checkpoint, name, other))
        };
        checkpoint.names().filter(of_use).map(str::to_owned).collect()
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
