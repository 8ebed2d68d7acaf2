//! Finding and opening a model that a user names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lehr_model::adapt::AdapterConfig;
use lehr_model::io::gguf::Metadata;
use lehr_model::io::{
    BaseModel, MANIFEST, Manifest, ModelSource, Scrutiny, check_checkpoint, checkpoints,
    newest_checkpoint, read_json,
};
use lehr_model::peft::PeftAdapter;
use lehr_model::{Model, Weights};
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};

use crate::notice::{self, Notice};
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

/// Keys of `generation_config.json` that are read, or that change no text.
const READ_OR_HARMLESS: [&str; 9] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "_from_model_config",
    "use_cache",
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
];

impl Loaded {
    /// Opens a run directory, a checkpoint, a Hugging Face folder or a GGUF file for inference.
    /// `weights` is the format in which its matrices are kept.
    ///
    /// # Errors
    /// If there is no model, or its parts do not belong together.
    pub fn open(path: &Path, weights: Weights) -> Result<Self> {
        let path = &resolve_model(path)?;
        if path.is_dir() && PeftAdapter::is_in(path) {
            let base = BaseModel::checked(path)?;
            let base = base.ok_or_else(|| Error::AdapterAlone { path: path.to_owned() })?;
            return Self::adapted(&base, &PeftAdapter::open(path)?, weights);
        }
        let of_folder = |path: &Path| Model::open(path, weights);
        Self::new(path, of_folder, |source| Model::open_source(source, weights))
    }

    /// Opens a model as [`Loaded::open`] does, with the adapter in `adapter` ([`open_adapter`]). If
    /// that is a run, tokenizer and chat template are the run's.
    ///
    /// # Errors
    /// As [`Loaded::open`], and if the adapter cannot be read or belongs to another model.
    pub fn open_with_adapter(path: &Path, adapter: &Path, weights: Weights) -> Result<Self> {
        let (base, adapter) = (resolve_model(path)?, open_adapter(adapter)?);
        let mut loaded = Self::adapted(&base, &adapter, weights)?;
        adapter.warnings(&base)?.into_iter().for_each(|warning| loaded.model.warn(warning));
        Ok(loaded)
    }

    fn adapted(base: &Path, adapter: &PeftAdapter, weights: Weights) -> Result<Self> {
        let path = if adapter.is_checkpoint() { adapter.dir() } else { base }.to_owned();
        let (tokenizer, metadata) = (tokenizer_of(&path)?, gguf_metadata(&path)?);
        let mut model = Model::open_folder_with_adapter(base, weights, adapter)?;
        if let Some(warning) = check_vocabulary(&path, &tokenizer, &model)? {
            model.warn(warning);
        }
        Ok(Self { model, tokenizer, path, metadata })
    }

    /// Opens a model to train new adapters of it. Its own weights are frozen, in the format
    /// `weights`; `None` keeps quantised matrices as stored and others in f32.
    ///
    /// # Errors
    /// As [`Loaded::open`], and if a target of `adapters` matches no layer, or their settings are
    /// invalid.
    pub fn open_to_adapt(
        path: &Path,
        adapters: &AdapterConfig,
        weights: Option<Weights>,
    ) -> Result<Self> {
        let (of_folder, of_file) =
            (weights.unwrap_or(Weights::F32), weights.unwrap_or(Weights::AsStored));
        Self::new(
            path,
            |path| Model::open_adapted(&ModelSource::open(path)?, of_folder, adapters),
            |source| Model::open_adapted(source, of_file, adapters),
        )
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
        let (mut model, tokenizer, metadata) = if path.is_file() {
            let source = ModelSource::open(&path)?;
            let metadata = source.gguf_metadata().cloned().unwrap_or_default();
            (of_file(&source)?, gguf_tokenizer(&metadata)?, Some(metadata))
        } else {
            let tokenizer = Tokenizer::open(&path)?;
            (of_folder(&path)?, tokenizer, None)
        };
        if let Some(warning) = check_vocabulary(&path, &tokenizer, &model)? {
            model.warn(warning);
        }
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

    /// Names the settings of sampling in `generation_config.json`, which are not used; `None` if
    /// there are none.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn sampling_note(&self) -> Result<Option<String>> {
        let path = self.path.join("generation_config.json");
        if self.metadata.is_some() || !path.is_file() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        let settings = json.as_object().into_iter().flatten();
        let settings = settings
            .filter(|(key, value)| !value.is_null() && !READ_OR_HARMLESS.contains(&key.as_str()));
        let list: Vec<_> = settings.map(|(key, value)| format!("{key} = {value}")).collect();
        Ok((!list.is_empty()).then(|| {
            format!(
                "generation_config.json has settings that lehr does not take by itself: {}; give \
                 them as options",
                list.join(", ")
            )
        }))
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

/// Opens an adapter: a folder in the format of PEFT, or a run that trained one.
///
/// # Errors
/// If there is none, or its files cannot be read.
pub fn open_adapter(path: &Path) -> Result<PeftAdapter> {
    let is_run = !PeftAdapter::is_in(path) && path.join("checkpoints").is_dir();
    let dir = if is_run { resolve_model(path)? } else { path.to_owned() };
    Ok(PeftAdapter::open(&dir)?)
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

/// Most ids without a row, as a share of the tokenizer's, before tokenizer and model count as of
/// different models.
const WITHOUT_ROW: f64 = 0.1;

/// Checks that the ids of the tokenizer have rows in the model's embedding. Returns a warning if a
/// few have none: those of tokens that were added and not trained. [`check_ids`] refuses them in
/// texts.
///
/// # Errors
/// If many ids have no row, so the two belong to different models.
pub fn check_vocabulary(
    dir: &Path,
    tokenizer: &Tokenizer,
    model: &Model,
) -> Result<Option<String>> {
    // Models often pad the embedding to a round number of rows.
    let (n_ids, n_rows) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if n_ids <= n_rows {
        return Ok(None);
    }
    let n = n_ids - n_rows;
    if n as f64 > WITHOUT_ROW * n_ids as f64 {
        let path = dir.to_owned();
        return Err(Error::Vocabulary { path, tokenizer: n_ids, model: n_rows });
    }
    /// Tokens named.
    const NAMED: usize = 4;
    let names = (n_rows..n_ids).take(NAMED).map(|id| tokenizer.decode(&[id as u32]));
    let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    let more = if n > NAMED { ", …" } else { "" };
    Ok(Some(format!(
        "the tokenizer has {n_ids} ids, the model's vocabulary {n_rows}: texts with the tokens \
         from {n_rows} on ({}{more}) are refused",
        names.join(", ")
    )))
}

/// Checks that every id of a text has a row in the model's embedding.
///
/// # Errors
/// At the first that has none.
pub fn check_ids(ids: &[u32], tokenizer: &Tokenizer, model: &Model) -> Result<()> {
    let vocab_size = model.spec().vocab_size;
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(&id) => Err(Error::TokenId { id, token: tokenizer.decode(&[id]), vocab_size }),
    }
}

/// Resolves `path` to a model: a folder with `config.json` and weights, the newest intact
/// checkpoint of a run directory, or a GGUF file.
///
/// The files of a checkpoint are compared with the sizes and hashes in its manifest. Damaged
/// checkpoints of a run directory are skipped and reported to [`crate::on_notice`].
///
/// # Errors
/// If there is no model, or `path` is a damaged checkpoint.
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
    if PeftAdapter::is_in(path) && !path.join("config.json").is_file() {
        return Err(Error::AdapterAlone { path: path.to_owned() });
    }
    if path.join("config.json").is_file() {
        if path.join(MANIFEST).is_file() {
            tell_hashing(path);
            check_checkpoint(path, Scrutiny::Remembered)?;
        }
        return Ok(path.to_owned());
    }
    if let Some((_, newest)) = checkpoints(path).last() {
        tell_hashing(newest);
    }
    let mut n_damaged = 0;
    let mut on_damaged = |path: &Path, error: &lehr_model::Error| {
        n_damaged += 1;
        notice::tell(&Notice::Damaged { path, error });
    };
    match newest_checkpoint(path, Scrutiny::Remembered, &mut on_damaged) {
        Some((_, dir)) => Ok(dir),
        None if n_damaged > 0 => {
            Err(none(format!("the run has no whole checkpoint: {n_damaged} damaged")))
        }
        None if path.join("checkpoints").is_dir() => {
            Err(none("the run has no whole checkpoint yet".to_owned()))
        }
        None => Err(none("found neither config.json nor checkpoints/".to_owned())),
    }
}

/// Size from which hashing a checkpoint is reported, because it takes seconds.
const LONG_BYTES: u64 = 1 << 30;

fn tell_hashing(dir: &Path) {
    let bytes = Manifest::read(dir).map_or(0, |manifest| manifest.bytes_to_hash(dir));
    if bytes >= LONG_BYTES {
        notice::tell(&Notice::Hashing { path: dir, bytes });
    }
}

fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"GGUF"
}
