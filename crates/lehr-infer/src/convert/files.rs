//! The files of a model's folder, and what a copy does with each.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::io::{BASE, MANIFEST, weight_files};

use super::io;
use crate::Result;
use crate::model_files::raw;

/// Endings of files of weights, in any program's format.
const WEIGHTS: [&str; 17] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "ot",
    "gguf",
    "npz",
    "pdparams",
    "mlmodel",
    "tflite",
    "nemo",
    "index.json",
];

/// Files of a run that continue it. A copy is not part of the run.
const OF_RUN: [&str; 4] = [MANIFEST, BASE, "state.json", "objective.json"];

/// The fate of a file in a copy that is a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is copied unchanged.
    Copied,
    /// The copy has a new one.
    Rewritten,
    /// It is not kept: weights that lehr did not read, the state of a run, a hidden folder.
    LeftOut,
}

/// A file of a folder, relative to it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) fate: Fate,
}

impl Found {
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// Lists all files below `dir`, sorted.
pub(super) fn list(dir: &Path) -> Result<Vec<Found>> {
    let mut rules = Rules { dir, read: BTreeSet::new(), modules: modules(dir)? };
    // The parts of a tensor-parallel checkpoint are recognised by their names.
    rules.read.extend(weight_files(dir).unwrap_or_default());
    let mut found = Vec::new();
    rules.walk(Path::new(""), &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Folders of modules that a sentence-transformers model runs after the transformer.
fn modules(dir: &Path) -> Result<BTreeSet<String>> {
    let path = dir.join("modules.json");
    let json = if path.is_file() { lehr_model::io::read_json(&path)? } else { Default::default() };
    let paths = json.as_array().into_iter().flatten().filter_map(|m| m.get("path")?.as_str());
    Ok(paths.filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

struct Rules<'a> {
    dir: &'a Path,
    read: BTreeSet<PathBuf>,
    modules: BTreeSet<String>,
}

impl Rules<'_> {
    fn walk(&self, below: &Path, found: &mut Vec<Found>) -> Result<()> {
        let dir = self.dir.join(below);
        for entry in fs::read_dir(&dir).map_err(io("reading", &dir))? {
            let entry = entry.map_err(io("reading", &dir))?;
            let path = below.join(entry.file_name());
            // Files may be links, as in the cache of Hugging Face's hub. A folder that is a link
            // may contain itself.
            let is_link = entry.file_type().map_err(io("reading", &dir))?.is_symlink();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            let is_dir = entry.path().is_dir();
            if is_dir && !is_link && !is_hidden {
                self.walk(&path, found)?;
                continue;
            }
            let is_lost = is_dir || !entry.path().exists();
            let fate = if is_lost { Fate::LeftOut } else { self.fate(&path) };
            found.push(Found { path, fate });
        }
        Ok(())
    }

    fn fate(&self, path: &Path) -> Fate {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let is_top = parts.len() == 1;
        let in_module = !is_top && self.modules.contains(&*parts[0]);
        let is_weights = WEIGHTS.iter().any(|end| name.ends_with(&format!(".{end}")));
        let is_part = is_top && name.starts_with("mp_rank_") && self.read.is_empty();
        let is_index = is_top && name.ends_with(".index.json");
        match () {
            () if is_top && name == "config.json" => Fate::Rewritten,
            () if self.read.contains(&self.dir.join(path)) || is_part || is_index => {
                Fate::Rewritten
            }
            () if in_module => Fate::Copied,
            () if is_weights || (is_top && OF_RUN.contains(&&*name)) => Fate::LeftOut,
            () => Fate::Copied,
        }
    }
}

/// Copies a file of `from` to the same place below `to`.
pub(super) fn copy(from: &Path, to: &Path, path: &Path) -> Result<()> {
    let (source, target) = (from.join(path), to.join(path));
    let parent = target.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(io("creating", parent))?;
    fs::copy(&source, &target).map(drop).map_err(io("copying", &source))
}

/// Names the settings of generation, other than ids of tokens, in a folder.
pub(super) fn generation_settings(dir: &Path) -> Result<Vec<String>> {
    let settings = raw(dir, crate::model_files::GENERATION_CONFIG)?.unwrap_or_default();
    let is_setting = |key: &&str| {
        !key.starts_with('_') && !key.ends_with("token_id") && *key != "transformers_version"
    };
    Ok(settings.keys().filter(is_setting).map(str::to_owned).collect())
}
