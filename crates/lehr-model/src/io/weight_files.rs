//! The files that hold a model's weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::entry::Entry;
use super::{gguf, read_json};
use crate::{Error, Result};

/// The file of the settings of an adapter, in whose folder there need be no weights of a model.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The weight files of a model.
pub(super) struct WeightFiles {
    pub(super) paths: Vec<PathBuf>,
    /// The index of a sharded model.
    pub(super) index: Option<Index>,
    /// Names of weight files beside them that are not read.
    pub(super) left: Vec<String>,
}

/// The tensors of a file, by name.
type NamedEntries = Vec<(String, Entry)>;

/// The index of a sharded model: the file of each tensor.
pub(super) struct Index {
    path: PathBuf,
    file_of: BTreeMap<String, String>,
}

/// Beginnings of files with another form of the same weights, of training, and of results for
/// `lehr verify`. Not reading them loses nothing.
const OTHER_FORMS: [&str; 10] = [
    "pytorch_model",
    "consolidated.",
    "tf_model",
    "flax_model",
    "rust_model",
    "optimizer",
    "objective",
    "training_args",
    "scheduler",
    "golden",
];

/// Lists the weight files of a folder, or the file itself with its other parts.
///
/// # Errors
/// If there are none.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(WeightFiles::find(path)?.paths)
}

impl WeightFiles {
    /// Finds the weight files of a folder, or takes the file itself, with the other parts of a GGUF
    /// file in several.
    pub(super) fn find(path: &Path) -> Result<Self> {
        if std::fs::metadata(path).map_err(Error::io("opening", path))?.is_file() {
            return Ok(Self { paths: gguf::parts(path)?, index: None, left: Vec::new() });
        }
        let there = |name: &str| Some(path.join(name)).filter(|path| path.is_file());
        let mut found = None;
        for name in ["model.safetensors", "pytorch_model.bin"] {
            if let Some(single) = there(name) {
                found = Some((vec![single], None));
                break;
            }
            if let Some(index) = there(&format!("{name}.index.json")) {
                let index = Index::read(&index)?;
                found = Some((index.paths(path)?, Some(index)));
                break;
            }
        }
        let (paths, index) = match found {
            Some(found) => found,
            None if there(ADAPTER_CONFIG).is_some() => {
                return Err(Error::Format {
                    path: path.to_owned(),
                    reason: "it has an adapter and not the weights of the model".to_owned(),
                    hint: Some(format!(
                        "use it with generate, chat, eval or classify, or write the whole model: \
                         `lehr convert MODEL --adapter {} --to OUT`",
                        path.display()
                    )),
                });
            }
            None => (vec![consolidated(path)?], None),
        };
        let left = left(path, &paths)?;
        Ok(Self { paths, index, left })
    }
}

/// Lists the weight files of a folder that are not among `read`.
fn left(dir: &Path, read: &[PathBuf]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let path = entry.map_err(Error::io("listing", dir))?.path();
        let name = file_name(&path);
        let is_weights = [".safetensors", ".bin", ".pt", ".pth"].iter().any(|e| name.ends_with(e));
        let other_form = OTHER_FORMS.iter().any(|start| name.starts_with(start));
        if is_weights && !other_form && path.is_file() && !read.contains(&path) {
            left.push(name);
        }
    }
    left.sort();
    Ok(left)
}

fn consolidated(dir: &Path) -> Result<PathBuf> {
    let there = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    match (there("consolidated.00.pth"), there("consolidated.01.pth")) {
        (Some(single), None) => Ok(single),
        (Some(_), Some(_)) => Err(Error::Format {
            path: dir.to_owned(),
            reason: "found consolidated.00.pth and more: every tensor is cut in parts".to_owned(),
            hint: Some("use the model's Hugging Face folder, which has whole tensors".to_owned()),
        }),
        (None, _) => Err(Error::Format {
            path: dir.to_owned(),
            reason: "found neither model.safetensors nor pytorch_model.bin (nor their \
                     .index.json) nor consolidated.00.pth"
                .to_owned(),
            hint: Some("give a run directory or a Hugging Face folder".to_owned()),
        }),
    }
}

/// Tensors named in a warning.
const LISTED: usize = 24;

/// Returns the last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let json = read_json(path)?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            return Err(Error::format(path, "`weight_map` is missing"));
        };
        let mut file_of = BTreeMap::new();
        for (tensor, file) in map {
            // A name with a path would read files outside the folder.
            let plain = file.as_str().filter(|n| Path::new(n).file_name() == Some(n.as_ref()));
            let Some(file) = plain else {
                let found = file.as_str().map_or_else(|| file.to_string(), str::to_owned);
                let reason = format!("`{found}` is not a plain file name");
                return Err(Error::format(path, reason));
            };
            file_of.insert(tensor.clone(), file.to_owned());
        }
        Ok(Self { path: path.to_owned(), file_of })
    }

    /// Keeps of each tensor the one in the file that the index names, and describes the others.
    /// `of_file` returns the name of an entry's file.
    pub(super) fn keep(
        &self,
        found: Vec<(String, Entry)>,
        of_file: impl Fn(&Entry) -> String,
    ) -> Result<(NamedEntries, Option<String>)> {
        let (named, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|(name, entry)| self.file_of.get(name) == Some(&of_file(entry)));
        let there: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        if let Some((name, file)) = self.file_of.iter().find(|(n, _)| !there.contains(n.as_str())) {
            let reason = format!("it says that {file} holds `{name}`, which is not there");
            return Err(Error::format(&self.path, reason));
        }
        let list = others.iter().map(|(name, entry)| format!("`{name}` in {}", of_file(entry)));
        let list: Vec<_> = list.take(LISTED).collect();
        let warning = (!others.is_empty()).then(|| {
            let (n, index) = (others.len(), file_name(&self.path));
            format!(
                "{index} does not name {n} tensors of its files, which are not read: {}",
                list.join(", ")
            )
        });
        Ok((named, warning))
    }

    /// Returns the files. All of them exist.
    fn paths(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut names: Vec<&str> = self.file_of.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let (there, missing): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|name| dir.join(name).is_file());
        if missing.is_empty() {
            return Ok(there.into_iter().map(|name| dir.join(name)).collect());
        }
        Err(Error::Format {
            path: self.path.clone(),
            reason: format!(
                "it names {} files, of which {} are missing: {}",
                there.len() + missing.len(),
                missing.len(),
                missing.join(", ")
            ),
            hint: Some("copy or download the missing files into the folder".to_owned()),
        })
    }
}
