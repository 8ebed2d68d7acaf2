//! Finding and opening what a user calls a model.

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
    /// What a GGUF file says besides numbers.
    metadata: Option<Metadata>,
}

impl Loaded {
    /// Opens a run directory, a checkpoint, a Hugging Face folder or a GGUF file to be used, its
    /// matrices kept as `weights` says.
    ///
    /// # Errors
    /// If there is no model, or its parts do not belong together.
    pub fn open(path: &Path, weights: Weights) -> Result<Self> {
        let of_folder = |path: &Path| Model::open(path, weights);
        Self::new(path, of_folder, |source| Model::open_source(source, weights))
    }

    /// The same with all weights as parameters: to be trained.
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

    /// What a GGUF file says besides numbers; `None` for a folder.
    #[must_use]
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The model's chat template: its own, or the built-in one its special tokens tell of.
    ///
    /// # Errors
    /// As [`template_of`].
    pub fn template(&self) -> Result<ChatTemplate> {
        Ok(ChatTemplate::for_model(&self.tokenizer, &self.template_parts()?)?)
    }

    /// What the model's files say about its chat template.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn template_parts(&self) -> Result<TemplateParts> {
        match &self.metadata {
            Some(metadata) => gguf_template_parts(metadata),
            None => folder_template_parts(&self.path),
        }
    }

    /// The ids at which a continued text ends: the end of a document, and what the files name.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn end_ids(&self) -> Result<Vec<u32>> {
        let mut ids = self.template_parts()?.eos_ids;
        ids.extend(self.tokenizer.end_of_document().ok());
        Ok(ids)
    }

    /// The template a user asked for: the name of a built-in one, or a file that ends in `.jinja`.
    /// It is given the special tokens of the model's files.
    ///
    /// # Errors
    /// There is no template of that name, or the file cannot be read or is no template.
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

/// The tokenizer of the model that `path`, from [`resolve_model`], is.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn tokenizer_of(path: &Path) -> Result<Tokenizer> {
    match gguf_metadata(path)? {
        Some(metadata) => gguf_tokenizer(&metadata),
        None => Ok(Tokenizer::open(path)?),
    }
}

/// The chat template of the model that `path`, from [`resolve_model`], is.
///
/// # Errors
/// A file of the model cannot be read or is damaged, or there is neither a template nor a known set
/// of special tokens.
pub fn template_of(path: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let parts = match gguf_metadata(path)? {
        Some(metadata) => gguf_template_parts(&metadata)?,
        None => folder_template_parts(path)?,
    };
    Ok(ChatTemplate::for_model(tokenizer, &parts)?)
}

fn gguf_metadata(path: &Path) -> Result<Option<Metadata>> {
    if !path.is_file() {
        return Ok(None);
    }
    Ok(ModelSource::open(path)?.gguf_metadata().cloned())
}

pub(crate) fn folder_template_parts(dir: &Path) -> Result<TemplateParts> {
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

/// The model that `path` means: a folder with `config.json` and weights, which is `path` itself or
/// the newest whole checkpoint of the run directory it is; or a GGUF file.
///
/// # Errors
/// If there is none.
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
