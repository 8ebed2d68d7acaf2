//! Finding and opening what a user calls a model.

use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_tokenizer::Tokenizer;

use crate::{Error, Result};

/// A model with its tokenizer.
pub struct Loaded {
    /// The decoder.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The folder both came from.
    pub dir: PathBuf,
}

impl Loaded {
    /// Opens a run directory, a checkpoint or a Hugging Face folder.
    ///
    /// # Errors
    /// If there is no model, or its parts do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = resolve_model_dir(path)?;
        let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
        let model = Model::load(&dir)?;
        check_vocabulary(&dir, &tokenizer, &model)?;
        Ok(Self { model, tokenizer, dir })
    }
}

/// Checks that every id of the tokenizer has a row in the model's embedding.
///
/// # Errors
/// If there are more ids than rows: they are of two models.
pub fn check_vocabulary(dir: &Path, tokenizer: &Tokenizer, model: &Model) -> Result<()> {
    // A model may have unused rows (padding to a round number), never too few.
    let (tokenizer, model) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if tokenizer <= model {
        return Ok(());
    }
    Err(Error::Vocabulary { path: dir.to_owned(), tokenizer, model })
}

/// The folder with `config.json` and weights that `path` means: itself, or the newest whole
/// checkpoint of a run directory.
///
/// # Errors
/// If there is none.
pub fn resolve_model_dir(path: &Path) -> Result<PathBuf> {
    let none = |found: String| Error::NoModel { path: path.to_owned(), found };
    if !path.exists() {
        return Err(none("there is no such file or folder".to_owned()));
    }
    if path.is_file() {
        return Err(none("it is a file, expected a folder with config.json".to_owned()));
    }
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    let checkpoints = path.join("checkpoints");
    let step = |entry: std::io::Result<std::fs::DirEntry>| {
        let dir = entry.ok()?.path();
        let step: u64 = dir.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        // The manifest is written last: without it the checkpoint is not whole.
        dir.join("manifest.json").is_file().then_some((step, dir))
    };
    let newest = std::fs::read_dir(&checkpoints).ok().and_then(|dir| dir.filter_map(step).max());
    match newest {
        Some((_, dir)) => Ok(dir),
        None if checkpoints.is_dir() => Err(none("the run has no whole checkpoint yet".to_owned())),
        None => Err(none("found neither config.json nor checkpoints/".to_owned())),
    }
}
