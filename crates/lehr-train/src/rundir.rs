//! The files of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Disk, Storage, create_dir, replace_file};
use crate::recipe::ModelConfig;
use crate::{Error, Inputs, Recipe, Result};

mod lock;

use lock::Lock;

/// Names of files in a run directory.
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const PREDICTION: &str = "prediction.json";

/// Checks that the run directory of `recipe` is not a folder that the run reads: the model's, or a
/// folder of data with it inside, whose next reader would take the run's files for data.
///
/// # Errors
/// If it is.
pub fn check_run_dir(recipe: &Recipe) -> Result<()> {
    let model = match &recipe.model {
        ModelConfig::Load { path } => Some(Path::new(path)),
        _ => None,
    };
    let data = [&recipe.data.path, &recipe.data.validation_path].map(Path::new);
    check_places(&recipe.dir(), model, &data)
}

/// Checks as [`check_run_dir`] does, before there is a recipe.
pub(crate) fn check_places(out: &Path, model: Option<&Path>, data: &[&Path]) -> Result<()> {
    let Some(dir) = absolute(out) else { return Ok(()) };
    let in_use = |what, used: &Path| {
        let (path, used) = (out.to_owned(), used.to_owned());
        Err(Error::RunDirInUse { path, what, used })
    };
    // A run may be continued from its own checkpoints: then it says that it has another recipe.
    if let Some(model) = model.filter(|_| !out.join("recipe.toml").exists())
        && std::fs::canonicalize(model).is_ok_and(|model| model == dir)
    {
        return in_use("the model", model);
    }
    let holds = |data: &Path| {
        std::fs::canonicalize(data).is_ok_and(|data| data.is_dir() && dir.starts_with(data))
    };
    match data.iter().find(|path| !path.as_os_str().is_empty() && holds(path)) {
        Some(path) => in_use("the data", path),
        None => Ok(()),
    }
}

/// Returns the absolute path of a folder that may not exist yet, from the nearest one that does.
fn absolute(dir: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(dir).ok()?;
    let (there, found) =
        whole.ancestors().find_map(|a| Some((a, std::fs::canonicalize(a).ok()?)))?;
    Some(found.join(whole.strip_prefix(there).ok()?))
}

/// A run directory:
/// `recipe.toml, metrics.jsonl, samples.jsonl, prediction.json, report.html, tensorboard/…,
/// checkpoints/step-N/…`.
///
/// It is locked while a value of this type exists: a directory has one writer.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Released with the last clone.
    _lock: Arc<Lock>,
    inputs: Option<Inputs>,
    accepts_changed_data: bool,
}

impl RunDir {
    /// Opens and locks the directory for a run of `recipe`: a new one, or one with the same recipe.
    ///
    /// # Errors
    /// If another process uses it, or it holds another recipe or cannot be written.
    pub fn open(recipe: &Recipe) -> Result<Self> {
        Self::open_with_storage(recipe, &mut Disk)
    }

    /// Opens the directory as [`RunDir::open`] does, and writes through `storage`.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn open_with_storage(recipe: &Recipe, storage: &mut dyn Storage) -> Result<Self> {
        let path = recipe.dir();
        create_dir(storage, &path)?;
        let lock = Arc::new(Lock::take(&path)?);
        let dir = Self { path, _lock: lock, inputs: None, accepts_changed_data: false };
        dir.remove_leftovers();
        dir.check_recipe(recipe)?;
        create_dir(storage, &dir.checkpoints())?;
        replace_file(storage, &dir.recipe(), recipe.to_toml().as_bytes())?;
        Ok(dir)
    }

    /// Checks that the directory is new or holds the same recipe.
    fn check_recipe(&self, recipe: &Recipe) -> Result<()> {
        let file = self.recipe();
        if !file.try_exists().map_err(Error::io("reading", &file))? {
            return Ok(());
        }
        let mut there = Recipe::of_run(&file)?;
        // The directory may have been moved or named differently.
        there.run.dir.clone_from(&recipe.run.dir);
        // A run may continue on another device, since checkpoints do not depend on it.
        (there.run.device, there.run.dtype) = (recipe.run.device, recipe.run.dtype);
        there.run.fp8 = recipe.run.fp8;
        // Checkpointing and CUDA graphs change memory and speed, but no result.
        there.train.activation_checkpointing = recipe.train.activation_checkpointing;
        there.train.cuda_graph = recipe.train.cuda_graph;
        // So do files for TensorBoard and warnings about stalls.
        there.run.tensorboard = recipe.run.tensorboard;
        there.watchdog.stall_seconds = recipe.watchdog.stall_seconds;
        if there == *recipe {
            return Ok(());
        }
        if self.has_begun() {
            let differs = there.differences(recipe);
            return Err(Error::OtherRun { path: self.path.clone(), differs });
        }
        // A run that failed before its first step has no results to lose. Its cache belongs to its
        // recipe and is removed with it, as is a checkpoint of step 0.
        self.remove(&self.cache())?;
        self.remove(&self.checkpoints())
    }

    fn remove(&self, folder: &Path) -> Result<()> {
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("removing", folder)(e))
            }
            _ => Ok(()),
        }
    }

    /// Removes token shards that a process had not finished when it ended. Nobody else writes here
    /// now.
    fn remove_leftovers(&self) {
        let entries = std::fs::read_dir(self.cache().join("tokens")).into_iter().flatten();
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                // They only take disk space.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Lets the run continue although its data or its base model has changed since the checkpoint.
    #[must_use]
    pub fn accepting_changed_data(self) -> Self {
        Self { accepts_changed_data: true, ..self }
    }

    /// Returns whether the run continues although its data has changed.
    #[must_use]
    pub fn accepts_changed_data(&self) -> bool {
        self.accepts_changed_data
    }

    /// Sets the inputs, which are then not hashed again.
    pub(crate) fn with_inputs(self, inputs: Inputs) -> Self {
        Self { inputs: Some(inputs), ..self }
    }

    /// Returns the inputs of the run by `recipe`, without what only a prepared run knows.
    pub(crate) fn inputs(&self, recipe: &Recipe) -> Result<Inputs> {
        self.inputs.as_ref().map_or_else(|| Inputs::of(recipe), |inputs| Ok(inputs.clone()))
    }

    /// Returns whether a step was made or a checkpoint saved, other than that of step 0.
    fn has_begun(&self) -> bool {
        let entries = std::fs::read_dir(self.checkpoints()).into_iter().flatten();
        let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        self.metrics().exists() || names.any(|name| name != "step-0")
    }

    /// Reads the recipe of an existing run.
    ///
    /// # Errors
    /// If there is no run.
    pub fn load_recipe(path: &Path) -> Result<Recipe> {
        let mut recipe = Recipe::of_run(&path.join("recipe.toml"))?;
        // The directory may have been moved since the recipe was written.
        recipe.run.dir = path.display().to_string();
        Ok(recipe)
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the resolved recipe.
    #[must_use]
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// Returns the path of the metrics: one line of JSON per step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Returns the path of the samples: one line of JSON each.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.jsonl")
    }

    /// Returns the folder of the event files for TensorBoard.
    #[must_use]
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Returns the path of what the plan predicts.
    #[must_use]
    pub fn prediction(&self) -> PathBuf {
        self.path.join(PREDICTION)
    }

    /// Returns the path of the HTML report.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Returns the folder of the checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Returns the folder of the token shards and the trained tokenizer.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }
}
