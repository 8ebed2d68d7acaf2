//! Conversion of a model to another format, with a proof that the copy computes the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::io::gguf::{FileType, GgufOptions, Metadata};
use lehr_model::io::{FloatFormat, ModelSource, read_json};
use lehr_model::{Model, Weights};
use lehr_tokenizer::Tokenizer;
use serde_json::{Value, json};

pub use crate::proof::{Bounds, Proof};

use crate::proof::{compare, outputs};
use crate::vocabulary::{gguf_template_parts, gguf_tokenizer, gguf_vocabulary};
use crate::{Error, Result, resolve_model, tokenizer_of};

/// Most tokens of the sample that are compared.
const SAMPLE_TOKENS: usize = 256;

/// Default text for comparing source and copy.
pub const SAMPLE: &str = "The committee met on the 4th of March 1998 to decide whether the old \
bridge, built in 1874, could carry the new tram line. \"It has carried everything else,\" said the \
engineer, and laid her drawings on the table.\n\n会议于下午三点开始，讨论了桥梁的修复计划和预算。\
工程师认为，只要更换两根横梁，这座桥还可以再用五十年。\n\ndef mean(values):\n    return \
sum(values) / len(values)\n\nLe vieux pont fut rouvert en juin; 12,5 % moins cher que prévu.";

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
    /// Parameters that the format cannot store.
    pub left_out: Vec<String>,
    /// What the source's files say and the model does not use.
    pub warnings: Vec<String>,
    /// The comparison.
    pub proof: Proof,
}

/// Writes the model `source` to `target` in another format, opens the result, and compares both on
/// `sample`. The result gets its final name only when it has passed.
///
/// # Errors
/// If the source cannot be read, the target exists, the format cannot store the family, its
/// tokenizer or a number, or the disk is full; [`Error::Unproven`] if the copy differs by more than
/// its format explains.
pub fn convert(source: &Path, target: &Path, format: Target, sample: &str) -> Result<Conversion> {
    let source = resolve_model(source)?;
    if target.exists() {
        return Err(Error::TargetExists { path: target.to_owned() });
    }
    let tokenizer = optional_tokenizer(&source)?;
    let model = Model::open(&source, Weights::Exact)?;
    if let Some(tokenizer) = &tokenizer {
        crate::check_vocabulary(&source, tokenizer, &model)?;
    }
    let warnings = model.warnings();
    let ids = sample_ids(&model, tokenizer.as_ref(), sample)?;
    let want = outputs(&model, &ids)?;
    let beside = beside(target);
    remove(&beside)?;
    let written = Written { source: &source, model: &model, tokenizer: tokenizer.as_ref() };
    let (formats, left_out) = match format {
        Target::Folder(format) => written.folder(&beside, format)?,
        Target::Gguf(file_type) => written.gguf(&beside, file_type, target)?,
    };
    drop(model);
    let copy = Model::open(&beside, Weights::Exact)?;
    let got = outputs(&copy, &ids)?;
    let mut proof = compare(&want, &got, format.bounds());
    proof.same_ids = match &tokenizer {
        Some(tokenizer) => {
            let copied = tokenizer_of(&beside)?;
            Some(copied.encode_prompt(sample)? == tokenizer.encode_prompt(sample)?)
        }
        None => None,
    };
    drop(copy);
    if !proof.passed() {
        return Err(Error::Unproven { path: beside, proof: Box::new(proof) });
    }
    fs::rename(&beside, target).map_err(io("renaming", &beside))?;
    Ok(Conversion { n_bytes: size(target)?, formats, left_out, warnings, proof })
}

/// The model to copy.
struct Written<'a> {
    source: &'a Path,
    model: &'a Model,
    tokenizer: Option<&'a Tokenizer>,
}

type Formats = (BTreeMap<String, usize>, Vec<String>);

impl Written<'_> {
    fn gguf(&self, file: &Path, file_type: FileType, target: &Path) -> Result<Formats> {
        let name = self.source.file_stem().or(target.file_stem()).unwrap_or_default();
        let options = GgufOptions {
            name: &name.to_string_lossy(),
            file_type,
            tokenizer: self.gguf_tokenizer()?,
        };
        let summary = self.model.save_gguf(file, &options)?;
        Ok((summary.formats, summary.left_out))
    }

    /// Returns the tokenizer's keys. Those of a GGUF file are copied, because they contain more
    /// than lehr reads.
    fn gguf_tokenizer(&self) -> Result<Metadata> {
        let Some(tokenizer) = self.tokenizer else { return Ok(Metadata::default()) };
        if self.source.is_file() {
            let source = ModelSource::open(self.source)?;
            let mut kept = Metadata::default();
            for (key, value) in source.gguf_metadata().into_iter().flat_map(Metadata::entries) {
                if key.starts_with("tokenizer.") {
                    kept.set(key.clone(), value.clone());
                }
            }
            return Ok(kept);
        }
        let mut metadata = gguf_vocabulary(tokenizer, self.model.spec().vocab_size)?;
        let parts = crate::load::folder_template_parts(self.source)?;
        if let Some(template) = &parts.jinja {
            metadata.set("tokenizer.chat_template", template.as_str());
        }
        Ok(metadata)
    }

    fn folder(&self, dir: &Path, format: FloatFormat) -> Result<Formats> {
        fs::create_dir_all(dir).map_err(io("creating", dir))?;
        self.model.save_as(dir, format)?;
        if let Some(tokenizer) = self.tokenizer {
            tokenizer.save(dir.join("tokenizer.json"))?;
        }
        if self.source.is_dir() {
            self.copy_texts(dir)?;
        } else {
            self.write_texts(dir)?;
        }
        let n = self.model.params().named().len();
        Ok((BTreeMap::from([(format.name().to_uppercase(), n)]), Vec::new()))
    }

    /// Copies the small files next to the weights of a folder.
    fn copy_texts(&self, dir: &Path) -> Result<()> {
        const FILES: [&str; 7] = [
            "generation_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "chat_template.json",
            "modules.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
        ];
        let pooling = Path::new("1_Pooling").join("config.json");
        for name in FILES.iter().map(Path::new).chain([pooling.as_path()]) {
            let (from, to) = (self.source.join(name), dir.join(name));
            if from.is_file() {
                let parent = to.parent().unwrap_or(dir);
                fs::create_dir_all(parent).map_err(io("creating", parent))?;
                fs::copy(&from, &to).map_err(io("copying", &from))?;
            }
        }
        let path = self.source.join("tokenizer_config.json");
        let mut config = if path.is_file() { read_json(&path)? } else { json!({}) };
        // The copy always has tokenizer.json, which this class reads.
        if config.get("tokenizer_class").is_none() || !self.source.join("tokenizer.json").is_file()
        {
            config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
            if let Some(config) = config.as_object_mut() {
                config.shift_remove("auto_map");
            }
        }
        self.write_tokenizer_config(dir, &config)
    }

    /// Writes the small files of a folder from the metadata of a GGUF file.
    fn write_texts(&self, dir: &Path) -> Result<()> {
        let source = ModelSource::open(self.source)?;
        let metadata = source.gguf_metadata().cloned().unwrap_or_default();
        let parts = gguf_template_parts(&metadata)?;
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        for (key, token) in &parts.special {
            config[key] = token.clone();
        }
        self.write_tokenizer_config(dir, &config)?;
        if let Some(template) = &parts.jinja {
            write_text(&dir.join("chat_template.jinja"), template)?;
        }
        let ids = self.tokenizer.map(Tokenizer::special_ids).unwrap_or_default();
        let mut generation = json!({});
        if let Some(bos) = ids.bos {
            generation["bos_token_id"] = bos.into();
        }
        match &parts.eos_ids[..] {
            [] => {}
            [one] => generation["eos_token_id"] = (*one).into(),
            several => generation["eos_token_id"] = several.into(),
        }
        write_text(&dir.join("generation_config.json"), &format!("{generation:#}\n"))
    }

    fn write_tokenizer_config(&self, dir: &Path, config: &Value) -> Result<()> {
        match self.tokenizer {
            Some(_) => write_text(&dir.join("tokenizer_config.json"), &format!("{config:#}\n")),
            None => Ok(()),
        }
    }
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

/// Returns the temporary path of a file or folder until it is complete.
fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.partial"))
}

/// Removes the remains of an interrupted conversion.
fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).map_err(io("removing", path)),
        Ok(_) => fs::remove_file(path).map_err(io("removing", path)),
        Err(_) => Ok(()),
    }
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
