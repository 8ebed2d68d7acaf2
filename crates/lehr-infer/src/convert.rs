//! Conversion of a model to another format, with a proof that the copy computes the same.

mod beside;
mod files;
mod folder;
mod gguf;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub use beside::{partial, remove_partial};
use lehr_model::io::gguf::FileType;
use lehr_model::io::{FloatFormat, ModelSource};
use lehr_model::peft::PeftAdapter;
use lehr_model::{Config, Model, Weights};
use lehr_tokenizer::Tokenizer;
use serde_json::Value;

pub use crate::proof::{Bounds, Fault, Part, Proof};

use self::beside::Beside;
use crate::proof::{compare, outputs, probe_ids};
use crate::vocabulary::gguf_tokenizer;
use crate::{Error, Result, open_adapter, resolve_model, tokenizer_of};

/// Most tokens of the sample that are compared.
const SAMPLE_TOKENS: usize = 256;

/// Default text for comparing source and copy.
pub const SAMPLE: &str = "The committee met on the 4th of March 1998 to decide whether the old \
bridge, built in 1874, could carry the new tram line. \"It has carried everything else,\" said the \
engineer, and laid her drawings on the table.\n\n会议于下午三点开始，讨论了桥梁的修复计划和预算。\
工程师认为，只要更换两根横梁，这座桥还可以再用五十年。\n\ndef mean(values):\n    return \
sum(values) / len(values)\n\nLe vieux pont fut rouvert en juin; 12,5 % moins cher que prévu.";

/// What the user must know about a folder with a model of lehr's own family.
const OWN_FAMILY: &str = "model_type is lehr, lehr's own family: transformers and llama.cpp cannot \
read the copy; train with model.kind = \"llama\" (both read it) or \"nanochat\" (transformers \
reads it) for a model to give away";

/// Target format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Hugging Face folder with weights in this format.
    Folder(FloatFormat),
    /// A GGUF file.
    Gguf(FileType),
}

impl Target {
    /// Returns the format's name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder(format) => format.name(),
            Self::Gguf(file_type) => file_type.name(),
        }
    }

    /// Bounds on how far the rounding of this format may move a model's results.
    ///
    /// Each bound is about one and a half times the largest value measured, and twice for the
    /// divergence, which varies most between models. The measured models are SmolLM2-135M, Gemma 3
    /// 270M, and the small random models of the golden files, whose flat logits change places most
    /// easily.
    #[must_use]
    pub fn bounds(self) -> Bounds {
        let (error, kl, top1) = match self {
            // Nothing is rounded, but sums may be taken in another order.
            Self::Folder(FloatFormat::F32) | Self::Gguf(FileType::F32) => (1e-5, 1e-9, 0.98),
            Self::Folder(FloatFormat::F16) | Self::Gguf(FileType::F16) => (2e-3, 7e-6, 0.97),
            Self::Folder(FloatFormat::BF16) | Self::Gguf(FileType::BF16) => (0.015, 2e-4, 0.95),
            Self::Gguf(FileType::Q8_0) => (0.05, 3.4e-3, 0.94),
            Self::Gguf(FileType::Q6_K) => (0.09, 0.025, 0.9),
            Self::Gguf(FileType::Q5_K_M) => (0.3, 0.21, 0.65),
            Self::Gguf(FileType::Q4_K_M) => (0.33, 0.21, 0.63),
            Self::Gguf(FileType::Q4_0) => (0.6, 0.8, 0.2),
        };
        Bounds { error, kl, top1 }
    }
}

/// Result of a conversion.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// Bytes of the file, or of the folder's files.
    pub n_bytes: u64,
    /// Number of tensors by format.
    pub formats: BTreeMap<String, usize>,
    /// What the source's files say and the model does not use.
    pub warnings: Vec<String>,
    /// Files of the source that were copied as they are.
    pub copied: Vec<String>,
    /// All that the source has and the copy does not.
    pub left_out: Vec<LeftOut>,
    /// The comparison.
    pub proof: Proof,
}

/// Parts of a source that a copy does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// What they are: parameters, files, keys of a file.
    pub what: &'static str,
    /// Their names.
    pub names: Vec<String>,
}

/// Writes the model `source` as [`convert`] does, with the adapter in the folder `adapter` merged
/// into its weights.
///
/// # Errors
/// As [`convert`], and if the adapter cannot be read, belongs to another model or cannot be merged.
pub fn convert_with_adapter(
    source: &Path,
    adapter: &Path,
    target: &Path,
    format: Target,
    sample: &str,
) -> Result<Conversion> {
    let adapter = open_adapter(adapter)?;
    convert_from(source, Some(&adapter), target, format, sample)
}

/// Writes the model `source` to `target` in another format, opens the result, and compares both on
/// `sample`. The result gets its final name only when it has passed; otherwise nothing is left.
///
/// # Errors
/// If the source cannot be read, the target exists, the format cannot store the family, its
/// tokenizer, its head or a number, or the disk is full; [`Error::Unproven`] if the copy differs by
/// more than its format explains.
pub fn convert(source: &Path, target: &Path, format: Target, sample: &str) -> Result<Conversion> {
    convert_from(source, None, target, format, sample)
}

fn convert_from(
    source: &Path,
    adapter: Option<&PeftAdapter>,
    target: &Path,
    format: Target,
    sample: &str,
) -> Result<Conversion> {
    let source = resolve_model(source)?;
    if fs::symlink_metadata(target).is_ok() {
        return Err(Error::TargetExists { path: target.to_owned() });
    }
    // A run that trained an adapter has a tokenizer and a chat template of its own.
    let texts = adapter.filter(|adapter| adapter.is_checkpoint());
    let texts = texts.map_or(source.as_path(), PeftAdapter::dir);
    let tokenizer = optional_tokenizer(texts)?;
    let mut model = match adapter {
        None => Model::open(&source, Weights::Exact)?,
        Some(adapter) => Model::open_folder_with_adapter(&source, Weights::Exact, adapter)?,
    };
    if let Some(tokenizer) = &tokenizer {
        crate::check_vocabulary(&source, tokenizer, &model)?;
    }
    let mut warnings = model.warnings();
    if let Some(adapter) = adapter {
        warnings.extend(adapter.warnings(&source)?);
    }
    if let (Config::Lehr(_), Target::Folder(_)) = (model.config(), format) {
        warnings.push(OWN_FAMILY.to_owned());
    }
    let ids = sample_ids(&model, tokenizer.as_ref(), sample)?;
    let probe = tokenizer.as_ref().and_then(|tokenizer| probe_ids(&model, tokenizer));
    let want = outputs(&model, &ids)?;
    let want_probe = probe.as_ref().map(|ids| outputs(&model, ids)).transpose()?;
    if adapter.is_some() {
        // The outputs above are those of the weights with the adapter beside them.
        model = model.merged()?;
    }
    let beside = Beside::new(target)?;
    let path = beside.path();
    let (source, tokenizer) = (source.as_path(), tokenizer.as_ref());
    let writing = Writing { source, texts, target, model: &model, tokenizer };
    let written = match format {
        Target::Folder(format) => writing.folder(&path, format)?,
        Target::Gguf(file_type) => writing.gguf(&path, file_type, target)?,
    };
    drop(model);
    let copy = Model::open(&path, Weights::Exact)?;
    let mut proof = compare(&want, &outputs(&copy, &ids)?, format.bounds());
    if let (Some(ids), Some(want)) = (&probe, &want_probe) {
        proof.probe_error = Some(compare(want, &outputs(&copy, ids)?, format.bounds()).error);
    }
    drop(copy);
    let is_adapted = adapter.is_some();
    let pair = crate::proof::Pair { source, texts, copy: &path, target: format, is_adapted };
    pair.compare_parts(tokenizer, sample, &written.extra, &mut proof)?;
    let faults = proof.faults();
    if !faults.is_empty() {
        return Err(Error::Unproven { path: target.to_owned(), faults });
    }
    beside.finish()?;
    let Written { formats, copied, left_out, .. } = written;
    Ok(Conversion { n_bytes: size(target)?, formats, warnings, copied, left_out, proof })
}

/// The model to copy.
struct Writing<'a> {
    source: &'a Path,
    /// The folder or file of tokenizer and chat template: the source, or a run with an adapter.
    texts: &'a Path,
    target: &'a Path,
    model: &'a Model,
    tokenizer: Option<&'a Tokenizer>,
}

/// A report of what was written.
#[derive(Default)]
struct Written {
    formats: BTreeMap<String, usize>,
    copied: Vec<String>,
    /// Tensors that the model does not use, such as the head of a task.
    extra: Vec<String>,
    left_out: Vec<LeftOut>,
}

/// Opens the tokenizer, if the model has one.
fn optional_tokenizer(source: &Path) -> Result<Option<Tokenizer>> {
    if source.is_file() {
        let opened = ModelSource::open(source)?;
        let metadata = opened.gguf_metadata().cloned().unwrap_or_default();
        let is_there = metadata.get("tokenizer.ggml.tokens").is_some();
        return is_there.then(|| gguf_tokenizer(&metadata)).transpose();
    }
    match tokenizer_of(source) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(Error::Tokenizer(lehr_tokenizer::Error::NoTokenizer { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Encodes the sample, cut to the model's context. Without a tokenizer, returns ids spread over the
/// vocabulary.
fn sample_ids(model: &Model, tokenizer: Option<&Tokenizer>, sample: &str) -> Result<Vec<i32>> {
    let spec = model.spec();
    let limit = spec.max_positions.min(SAMPLE_TOKENS);
    let mut ids: Vec<i32> = match tokenizer {
        Some(tokenizer) => tokenizer.encode_prompt(sample)?.into_iter().map(|i| i as i32).collect(),
        None => ids_without_tokenizer(model, limit),
    };
    // Special tokens at the end of a prompt stay there.
    if ids.len() > limit {
        let n_after = tokenizer.map_or(0, |t| t.suffix_ids().len()).min(limit);
        let after = ids.split_off(ids.len() - n_after);
        ids.truncate(limit - n_after);
        ids.extend(after);
    }
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    Ok(ids)
}

/// Returns distinct ids. For a GLM model they include its mask and start tokens.
fn ids_without_tokenizer(model: &Model, limit: usize) -> Vec<i32> {
    // Steps of a prime visit every id, unless the prime divides the size of the vocabulary.
    let n = model.spec().vocab_size;
    let mut ids: Vec<i32> = (0..limit).map(|i| (i * 7919 % n) as i32).collect();
    let config = model.config().to_json();
    let id = |key: &str| config.get(key).and_then(Value::as_i64).map(|id| id as i32);
    if let (Some(mask), Some(start)) =
        (id("gmask_token_id"), id("sop_token_id").or(id("bos_token_id")))
    {
        let tokens =
            ["mask", "gmask", "smask", "sop", "bos"].map(|name| id(&format!("{name}_token_id")));
        ids.retain(|id| !tokens.contains(&Some(*id)));
        let middle = ids.len() / 2;
        ids.splice(middle..middle, [mask, start]);
        ids.truncate(limit);
    }
    ids
}

fn size(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(io("reading", path))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let mut total = 0;
    for entry in fs::read_dir(path).map_err(io("reading", path))? {
        total += size(&entry.map_err(io("reading", path))?.path())?;
    }
    Ok(total)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(io("writing", path))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}
