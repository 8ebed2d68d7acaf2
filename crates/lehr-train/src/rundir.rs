//! The files of a run.

use std::path::{Path, PathBuf};

use lehr_model::io::write_file;

use crate::{Error, Recipe, Result};

/// A run directory:
/// `recipe.toml, metrics.jsonl, samples.jsonl, report.html, checkpoints/step-N/…`.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Opens the directory for a run of `recipe`: a new one, or one that holds the same recipe.
    ///
    /// # Errors
    /// If it holds another recipe or cannot be written.
    pub fn open(recipe: &Recipe) -> Result<Self> {
        let dir = Self { path: recipe.dir() };
        let file = dir.recipe();
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let mut there = Recipe::parse(&text, &file.display().to_string(), &[])?;
                // The directory may have been moved, or be named in another way now.
                there.run.dir.clone_from(&recipe.run.dir);
                // And a run may go on elsewhere: a checkpoint is the same for every device.
                (there.run.device, there.run.dtype) = (recipe.run.device, recipe.run.dtype);
                there.run.fp8 = recipe.run.fp8;
                // What memory it takes, and how it is started, changes no result.
                there.train.activation_checkpointing = recipe.train.activation_checkpointing;
                there.train.cuda_graph = recipe.train.cuda_graph;
                if there == *recipe {
                    return Ok(dir);
                }
                if dir.has_begun() {
                    return Err(Error::OtherRun { path: dir.path });
                }
                // An attempt that failed before its first step has nothing to lose, and a cache
                // that belongs to its recipe.
                match std::fs::remove_dir_all(dir.cache()) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("removing", &dir.cache())(e));
                    }
                    _ => {}
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("reading", &file)(e)),
        }
        std::fs::create_dir_all(dir.checkpoints()).map_err(Error::io("creating", &dir.path))?;
        write_file(&file, recipe.to_toml().as_bytes())?;
        Ok(dir)
    }

    /// Whether a step was made or something saved.
    fn has_begun(&self) -> bool {
        let checkpoints = std::fs::read_dir(self.checkpoints());
        self.metrics().exists() || checkpoints.is_ok_and(|mut entries| entries.next().is_some())
    }

    /// The recipe of an existing run.
    ///
    /// # Errors
    /// If there is no run.
    pub fn load_recipe(path: &Path) -> Result<Recipe> {
        let mut recipe = Recipe::load(&path.join("recipe.toml"), &[])?;
        // A run that was moved is still that run.
        recipe.run.dir = path.display().to_string();
        Ok(recipe)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe.
    #[must_use]
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// One line of JSON per logged step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// One line of JSON per sample.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.jsonl")
    }

    /// Curves, settings and samples for people.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// The folder of the checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Token shards and the trained tokenizer.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }
}
