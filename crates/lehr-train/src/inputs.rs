//! The inputs of a run: data files, base model, tokenizer and labels, by their hashes.
//!
//! A resumed run computes the bits of an uninterrupted one only from the same inputs. So each
//! checkpoint records them in `state.json`, and resuming compares them.

mod locate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lehr_data::data_files;
use lehr_infer::resolve_model;
use lehr_model::io::{ManifestFile, model_files};
pub(crate) use locate::refuse;
pub use locate::{Located, locate};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::recipe::{ModelConfig, TokenizerConfig};
use crate::{Error, Objective, Recipe, Result};

/// The inputs of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Folder in which the run was started. Relative paths of its recipe start there.
    pub folder: PathBuf,
    /// Sizes and SHA-256 hashes of the files.
    pub files: BTreeMap<Source, Vec<ManifestFile>>,
    /// Hash of the tokenizer; empty before the run is prepared.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tokenizer: String,
    /// Labels of a classifier, in the order of its outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// A path of a recipe whose files a run reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `data.path`.
    TrainingData,
    /// `data.validation_path`.
    ValidationData,
    /// `model.path`: weights, configuration and chat template.
    BaseModel,
    /// `tokenizer.path`. The tokenizer has its own hash, so this file is not hashed.
    TokenizerFile,
}

/// A difference between the inputs of a checkpoint and the present ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputChange {
    /// The input, and how it differs.
    pub text: String,
    /// Whether the run may continue on request. It may not with another tokenizer or other labels,
    /// because the weights would mean something else.
    pub is_acceptable: bool,
}

/// Maximum number of files of one source that an error names.
const NAMED_MAX: usize = 10;

impl Inputs {
    /// Hashes the files that `recipe` names, in blocks. A missing file is left out, so it differs
    /// from the file that was there.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let mut inputs = Self { folder: current_dir()?, ..Self::default() };
        for source in Source::of(recipe) {
            let path = source.path(recipe);
            let files = if path.exists() { source.hash(&path)? } else { Vec::new() };
            inputs.files.insert(source, files);
        }
        Ok(inputs)
    }

    /// Adds the tokenizer and the labels of a prepared run.
    #[must_use]
    pub fn with_objective(mut self, objective: &dyn Objective) -> Self {
        self.tokenizer = objective.tokenizer().hash();
        self.labels = labels(&objective.config_json());
        self
    }

    /// Lists the differences between the inputs of a checkpoint, `self`, and those of `now`.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<InputChange> {
        let mut changes = Vec::new();
        for source in Source::ALL {
            let texts = source.differences(self.files_of(source), now.files_of(source));
            let change = |text| InputChange { text, is_acceptable: true };
            changes.extend(texts.into_iter().map(change));
        }
        // Before a run is prepared, only its files are known.
        if self.tokenizer.is_empty() || now.tokenizer.is_empty() {
            return changes;
        }
        let mut compare = |what: &str, was: &str, is: &str| {
            if was != is {
                let text = format!("{what}: {is}; expected {was}");
                changes.push(InputChange { text, is_acceptable: false });
            }
        };
        compare("the hash of the tokenizer is", &self.tokenizer, &now.tokenizer);
        compare("the labels are", &self.labels.join(", "), &now.labels.join(", "));
        changes
    }

    fn files_of(&self, source: Source) -> &[ManifestFile] {
        self.files.get(&source).map_or(&[], Vec::as_slice)
    }
}

impl Source {
    const ALL: [Self; 4] =
        [Self::TrainingData, Self::ValidationData, Self::BaseModel, Self::TokenizerFile];

    /// Returns the sources that `recipe` names.
    fn of(recipe: &Recipe) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|source| !source.path(recipe).as_os_str().is_empty())
    }

    fn name(self) -> &'static str {
        match self {
            Self::TrainingData => "training data",
            Self::ValidationData => "validation data",
            Self::BaseModel => "base model",
            Self::TokenizerFile => "tokenizer file",
        }
    }

    /// Returns the path in `recipe`; empty if it names none.
    fn path(self, recipe: &Recipe) -> PathBuf {
        let path = match (self, &recipe.model, &recipe.tokenizer) {
            (Self::TrainingData, ..) => recipe.data.path.as_str(),
            (Self::ValidationData, ..) => &recipe.data.validation_path,
            (Self::BaseModel, ModelConfig::Load { path }, _)
            | (Self::TokenizerFile, _, TokenizerConfig::File { path }) => path,
            _ => "",
        };
        PathBuf::from(path)
    }

    fn set_path(self, recipe: &mut Recipe, new: &Path) {
        let new = new.display().to_string();
        match (self, &mut recipe.model, &mut recipe.tokenizer) {
            (Self::TrainingData, ..) => recipe.data.path = new,
            (Self::ValidationData, ..) => recipe.data.validation_path = new,
            (Self::BaseModel, ModelConfig::Load { path }, _)
            | (Self::TokenizerFile, _, TokenizerConfig::File { path }) => *path = new,
            _ => {}
        }
    }

    /// Hashes the files at `path`, in blocks.
    fn hash(self, path: &Path) -> Result<Vec<ManifestFile>> {
        match self {
            Self::TrainingData | Self::ValidationData => {
                let hash = |(name, path): (String, PathBuf)| Ok(ManifestFile::of(&path, name)?);
                data_files(path)?.into_iter().map(hash).collect()
            }
            Self::BaseModel => Ok(model_files(&resolve_model(path)?)?),
            Self::TokenizerFile => Ok(Vec::new()),
        }
    }

    /// Lists the differences between the files of a checkpoint and the present ones.
    fn differences(self, was: &[ManifestFile], now: &[ManifestFile]) -> Vec<String> {
        let find = |files: &'_ [ManifestFile], name: &str| {
            files.iter().find(|file| file.name == name).cloned()
        };
        let differs = |file: &ManifestFile| {
            let found = match find(now, &file.name) {
                None => "it is not there now".to_owned(),
                Some(found) if found == *file => return None,
                Some(found) if found.bytes != file.bytes => {
                    format!("it has {} bytes, expected {}", found.bytes, file.bytes)
                }
                Some(found) => {
                    let (found, expected) = (&found.sha256, &file.sha256);
                    format!("its SHA-256 hash is {found}, expected {expected}")
                }
            };
            Some(format!("{} {}: {found}", self.name(), file.name))
        };
        let added = now.iter().filter(|file| find(was, &file.name).is_none());
        let added = added.map(|file| format!("{} {}: it was not there", self.name(), file.name));
        let mut texts: Vec<_> = was.iter().filter_map(differs).chain(added).collect();
        if texts.len() > NAMED_MAX {
            let n_more = texts.len() - NAMED_MAX;
            texts.truncate(NAMED_MAX);
            texts.push(format!("{}: {n_more} more files", self.name()));
        }
        texts
    }
}

/// Returns the labels of a model's configuration, in the order of its outputs.
fn labels(config: &Value) -> Vec<String> {
    let Some(names) = config.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    let label = |(id, name): (&String, &Value)| {
        Some((id.parse::<usize>().ok()?, name.as_str()?.to_owned()))
    };
    let by_id: BTreeMap<_, _> = names.iter().filter_map(label).collect();
    by_id.into_values().collect()
}

fn current_dir() -> Result<PathBuf> {
    std::env::current_dir().map_err(Error::io("finding the current folder", Path::new(".")))
}
