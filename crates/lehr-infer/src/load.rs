//! Finding and opening what a user calls a model.

use std::path::{Path, PathBuf};

use lehr_model::Model;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};

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

    /// The model's chat template: its own, or the built-in one its special tokens tell of.
    ///
    /// # Errors
    /// As [`template_of`].
    pub fn template(&self) -> Result<ChatTemplate> {
        template_of(&self.dir, &self.tokenizer)
    }

    /// The template a user asked for: the name of a built-in one, or a file that ends in `.jinja`. It is given the
    /// special tokens of the model's files.
    ///
    /// # Errors
    /// There is no template of that name, or the file cannot be read or is no template.
    pub fn template_named(&self, name: &str) -> Result<ChatTemplate> {
        let TemplateParts { special, eos_ids, .. } = template_parts(&self.dir)?;
        if Path::new(name).extension().is_none_or(|ending| ending != "jinja") {
            return Ok(ChatTemplate::by_name_with(name, special, eos_ids)?);
        }
        let unreadable = |source| Error::Io { action: "reading", path: name.into(), source };
        let source = std::fs::read_to_string(name).map_err(unreadable)?;
        Ok(ChatTemplate::from_jinja(name, &source, special, eos_ids)?)
    }
}

/// The chat template of the model in the folder `dir`.
///
/// # Errors
/// A file of the folder cannot be read or is damaged, or there is neither a template nor a known set of special tokens.
pub fn template_of(dir: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    Ok(ChatTemplate::for_model(tokenizer, &template_parts(dir)?)?)
}

fn template_parts(dir: &Path) -> Result<TemplateParts> {
    TemplateParts::from_files(|name| {
        let path = dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { action: "reading", path, source }),
        }
    })
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
