//! Finding and opening a model that a user names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lehr_model::io::gguf::Metadata;
use lehr_model::io::{ModelSource, Scrutiny, newest_checkpoint};
use lehr_model::{Model, Weights};
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};

use crate::vocabulary::{gguf_template_parts, gguf_tokenizer};
use crate::{Error, Result};

/// A model with its tokenizer.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The folder or the GGUF file both came from.
    pub path: PathBuf,
    /// The metadata of a GGUF file.
    metadata: Option<Metadata>,
}

impl Loaded {
    /// Opens a run directory, a checkpoint, a Hugging Face folder or a GGUF file for inference.
    /// `weights` is the format in which its matrices are kept.
    ///
    /// # Errors
    /// If there is no model, or its parts do not belong together.
    pub fn open(path: &Path, weights: Weights) -> Result<Self> {
        let of_folder = |path: &Path| Model::open(path, weights);
        Self::new(path, of_folder, |source| Model::open_source(source, weights))
    }

    /// Opens a model for training: all weights become parameters.
    ///
    /// # Errors
    /// As [`Loaded::open`].
    pub fn open_to_train(path: &Path) -> Result<Self> {
        Self::new(path, Model::load, Model::load_source)
    }

    fn new(
        path: &Path,
        of_folder: impl FnOnce(&Path) -> lehr_model::Result<Model>,
        of_file: impl FnOnce(&ModelSource) -> lehr_model::Result<Model>,
    ) -> Result<Self> {
        let path = resolve_model(path)?;
        let (model, tokenizer, metadata) = if path.is_file() {
            let source = ModelSource::open(&path)?;
            let metadata = source.gguf_metadata().cloned().unwrap_or_default();
            (of_file(&source)?, gguf_tokenizer(&metadata)?, Some(metadata))
        } else {
            let tokenizer = Tokenizer::open(&path)?;
            (of_folder(&path)?, tokenizer, None)
        };
        check_vocabulary(&path, &tokenizer, &model)?;
        Ok(Self { model, tokenizer, path, metadata })
    }

    /// Returns the metadata of a GGUF file; `None` for a folder.
    #[must_use]
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Returns the model's chat template: its own, or a built-in one recognised by its special
    /// tokens.
    ///
    /// # Errors
    /// As [`template_of`].
    pub fn template(&self) -> Result<ChatTemplate> {
        Ok(ChatTemplate::for_model(&self.tokenizer, &self.template_parts()?)?)
    }

    /// Reads the parts of the chat template from the model's files.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn template_parts(&self) -> Result<TemplateParts> {
        match &self.metadata {
            Some(metadata) => gguf_template_parts(metadata),
            None => folder_template_parts(&self.path),
        }
    }

    /// Returns the ids that end a text: the end of a document, and those named in the files.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn end_ids(&self) -> Result<Vec<u32>> {
        let mut ids = self.template_parts()?.eos_ids;
        ids.extend(self.tokenizer.end_of_document().ok());
        Ok(ids)
    }

    /// Returns the template that a user requested: a built-in one by name, or a `.jinja` file. It
    /// uses the special tokens of the model's files.
    ///
    /// # Errors
    /// If there is no template of that name, or the file cannot be read or parsed.
    pub fn template_named(&self, name: &str) -> Result<ChatTemplate> {
        let TemplateParts { special, eos_ids, .. } = self.template_parts()?;
        if Path::new(name).extension().is_none_or(|ending| ending != "jinja") {
            return Ok(ChatTemplate::by_name_with(name, special, eos_ids)?);
        }
        let unreadable = |source| Error::Io { action: "reading", path: name.into(), source };
        let source = std::fs::read_to_string(name).map_err(unreadable)?;
        Ok(ChatTemplate::from_jinja(name, &source, special, eos_ids)?)
    }
}

/// Opens the tokenizer of the model at `path`, which [`resolve_model`] returned.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
    match gguf_metadata(path)? {
        Some(metadata) => gguf_tokenizer(&metadata),
        None => Ok(Tokenizer::open(path)?),
    }
}

/// Reads the chat template of the model at `path`, which [`resolve_model`] returned.
///
/// # Errors
/// If a file of the model cannot be read or is damaged, or there is neither a template nor a known
/// set of special tokens.
pub fn template_of(path: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    Ok(ChatTemplate::for_model(tokenizer, &template_parts_of(path)?)?)
}

/// Reads the parts of the chat template of the model at `path`.
pub(crate) fn template_parts_of(path: &Path) -> Result<TemplateParts> {
    match gguf_metadata(path)? {
        Some(metadata) => gguf_template_parts(&metadata),
        None => folder_template_parts(path),
    }
}

/// Returns the metadata of a GGUF file; `None` for a folder.
pub(crate) fn gguf_metadata(path: &Path) -> Result<Option<Metadata>> {
    if !path.is_file() {
        return Ok(None);
    }
    Ok(ModelSource::open(path)?.gguf_metadata().cloned())
}

fn folder_template_parts(dir: &Path) -> Result<TemplateParts> {
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
/// If there are more ids than rows, so the two belong to different models.
pub fn check_vocabulary(dir: &Path, tokenizer: &Tokenizer, model: &Model) -> Result<()> {
    // Models often pad the embedding to a round number of rows, but never have too few.
    let (tokenizer, model) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if tokenizer <= model {
        return Ok(());
    }
    Err(Error::Vocabulary { path: dir.to_owned(), tokenizer, model })
}

/// Resolves `path` to a model: a folder with `config.json` and weights, the newest intact
/// checkpoint of a run directory, or a GGUF file.
///
/// # Errors
/// If there is no model.
pub fn resolve_model(path: &Path) -> Result<PathBuf> {
    let none = |found: String| Error::NoModel { path: path.to_owned(), found };
    if !path.exists() {
        return Err(none("there is no such file or folder".to_owned()));
    }
    if path.is_file() {
        let expected =
            "it is a file that is not GGUF, expected a folder with config.json or a GGUF file";
        return match is_gguf(path) {
            true => Ok(path.to_owned()),
            false => Err(none(expected.to_owned())),
        };
    }
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    match newest_checkpoint(path, Scrutiny::Sizes, &mut |_, _| ()) {
        Some((_, dir)) => Ok(dir),
        None if path.join("checkpoints").is_dir() => {
            Err(none("the run has no whole checkpoint yet".to_owned()))
        }
        None => Err(none("found neither config.json nor checkpoints/".to_owned())),
    }
}

fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"GGUF"
}
