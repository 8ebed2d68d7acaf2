//! Adapters in the format of PEFT: a folder with `adapter_config.json` and
//! `adapter_model.safetensors` (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).
//!
//! The tensors are named `base_model.model.PATH.lora_A.weight` and `…lora_B.weight`, where `PATH`
//! is the module of the base in `transformers`. Which layers are adapted, and their ranks, follow
//! from the tensors; scales follow from the settings.

mod files;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lehr_tensor::{Shape, Tensor};
use serde_json::Value;

use self::settings::{inner, is_end};
use crate::adapt::{AdapterMethod, SavedAdapters};
use crate::io::{self, ADAPTER_CONFIG, BaseModel, Checkpoint};
use crate::{Error, Model, Result};

/// The file of its tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// An older form of that file, which is read as well.
const OLD_WEIGHTS: &str = "adapter_model.bin";
/// What begins the names of tensors.
const PREFIX: &str = "base_model.model.";
/// What ends the name of a copy of the base's matrix. PEFT saves one of an adapted embedding or
/// head.
const COPY: &str = ".base_layer.weight";
/// Files of an adapter's folder that change no result: a description, the state of a training.
const SILENT: [&str; 6] = [
    "README.md",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
];
/// What is being done when an error occurs.
const OPENING: &str = "opening the adapter";

/// A saved adapter.
pub struct PeftAdapter {
    dir: PathBuf,
    base: Option<String>,
    tensors: Checkpoint,
    /// The adapted modules with their settings.
    layers: BTreeMap<String, AdapterMethod>,
    /// Tensors of whole layers that were trained beside the adapter: a classifier's head.
    whole: Vec<String>,
}

impl PeftAdapter {
    /// Opens the adapter in the folder `dir`.
    ///
    /// # Errors
    /// If a file is missing or damaged, the method is not LoRA, or a setting has an effect that
    /// lehr does not have.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ADAPTER_CONFIG);
        let json = io::read_json(&path)?;
        let Some(settings) = json.as_object() else {
            return Err(Error::format(&path, "it is no object"));
        };
        settings::check(settings, &path)?;
        let weights = [ADAPTER_WEIGHTS, OLD_WEIGHTS].map(|name| dir.join(name));
        let found = weights.iter().find(|path| path.is_file()).unwrap_or(&weights[0]);
        let tensors = Checkpoint::open(found)?;
        let whole = settings::whole(&tensors, settings);
        let layers = settings::layers(&tensors, settings, found)?;
        let base = settings.get("base_model_name_or_path").and_then(Value::as_str);
        Ok(Self { dir: dir.to_owned(), base: base.map(str::to_owned), tensors, layers, whole })
    }

    /// Returns whether `dir` is a folder with an adapter.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(ADAPTER_CONFIG).is_file()
    }

    /// Returns the folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether the folder is a checkpoint of lehr, which has a tokenizer and a chat
    /// template of its own beside the adapter.
    #[must_use]
    pub fn is_checkpoint(&self) -> bool {
        self.dir.join("config.json").is_file() && self.dir.join("tokenizer.json").is_file()
    }

    /// Returns what a user of the adapter over `base` must know: weights that are not those it was
    /// trained on, and files of its folder that nothing reads.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn warnings(&self, base: &Path) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(trained) = BaseModel::read(&self.dir)?
            && trained.sha256 != BaseModel::of(base)?.sha256
        {
            warnings.push(format!(
                "the adapter was trained on other weights than those of {}: on {}",
                base.display(),
                trained.path.display()
            ));
        }
        let unread = if self.is_checkpoint() { Vec::new() } else { unread(&self.dir)? };
        if !unread.is_empty() {
            let files = unread.join(", ");
            warnings.push(format!(
                "files of the adapter's folder that are not read: {files}; tokenizer and chat \
                 template are those of the model"
            ));
        }
        Ok(warnings)
    }

    /// Returns the base that the adapter names: a folder, or a name in a registry of models.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Returns the number of adapted layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Reads a tensor of a whole layer; `None` if the adapter does not have it.
    pub(crate) fn whole(&self, name: &str, shape: Shape) -> Option<Result<Tensor>> {
        let found = self.whole.iter().find(|found| inner(found) == name)?;
        Some(self.tensors.tensor(found, shape))
    }

    /// Checks that copies of the base's matrices are equal to those of `model`.
    pub(crate) fn check_copies(&self, model: &Model) -> Result<()> {
        for name in self.tensors.names() {
            let Some(layer) = inner(name).strip_suffix(COPY) else { continue };
            let named = model.params().named();
            let weight = named.iter().find(|weight| {
                weight.name().strip_suffix(".weight").is_some_and(|path| path == layer)
            });
            // A tied head has no matrix of its own.
            let Some(weight) = weight else { continue };
            let own = weight.to_host()?;
            let copy = self.tensors.tensor(name, own.shape())?;
            // What is stored in fewer bits differs by its rounding.
            if weight.stored().is_none() && own.data() != copy.data() {
                let found = format!("{name} differs from the matrix of the model");
                let hint = "use the model that the adapter was trained on";
                return Err(Error::adapter(OPENING, found, hint));
            }
        }
        Ok(())
    }

    /// Checks that the adapter has nothing but updates of linear layers.
    pub(crate) fn check_updates_only(&self) -> Result<()> {
        let Some(first) = self.whole.first() else { return Ok(()) };
        let found = format!(
            "{} has whole layers beside its updates, such as {first} (modules_to_save)",
            self.dir.display()
        );
        let hint =
            "the adapter of a classifier opens with lehr classify, as the run that trained it";
        Err(Error::adapter(OPENING, found, hint))
    }
}

impl SavedAdapters for PeftAdapter {
    fn find(&self, weights: &[String]) -> Option<(&str, AdapterMethod)> {
        let paths = || weights.iter().filter_map(|name| name.strip_suffix(".weight"));
        let same = self.layers.iter().find(|(layer, _)| paths().any(|path| path == *layer));
        let ends = || {
            let fits = |layer: &str| paths().any(|path| is_end(path, layer) || is_end(layer, path));
            self.layers.iter().find(|(layer, _)| fits(layer))
        };
        same.or_else(ends).map(|(layer, method)| (layer.as_str(), *method))
    }

    fn tensor(&self, layer: &str, name: &str, shape: Shape) -> Result<Tensor> {
        // A checkpoint has names without what wraps a model.
        let names = [format!("{layer}.{name}"), format!("{PREFIX}{layer}.{name}")];
        let found = names.iter().find(|name| self.tensors.has(name));
        self.tensors.tensor(found.unwrap_or(&names[0]), shape)
    }

    fn check_used(&self, used: &BTreeSet<String>) -> Result<()> {
        let unused: Vec<_> = self.layers.keys().filter(|layer| !used.contains(*layer)).collect();
        let Some(first) = unused.first() else { return Ok(()) };
        let found = format!(
            "the model has no layer for {} of the {} layers of {}, such as {first}",
            unused.len(),
            self.layers.len(),
            self.dir.display()
        );
        Err(Error::adapter(OPENING, found, "use the model that the adapter was trained on"))
    }
}

/// Lists the files of an adapter's folder that say something and are not read.
fn unread(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known =
            name.starts_with("adapter_") || name.starts_with('.') || SILENT.contains(&&*name);
        if !is_known && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
