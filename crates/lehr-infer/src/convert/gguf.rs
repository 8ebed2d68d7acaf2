//! Writing a copy as a GGUF file.

use std::path::Path;

use lehr_model::io::gguf::{Array, FileType, GgufOptions, Metadata};
use lehr_model::io::{Checkpoint, ModelSource, Shards, read_json};
use lehr_tokenizer::{Tokenizer, VocabParts};
use serde_json::Value;

use super::files::{self, Fate};
use super::{Writing, Written};
use crate::load::template_parts_of;
use crate::model_files::{GENERATION_CONFIG, TOKENIZER_CONFIG, raw};
use crate::pooling::Settings;
use crate::vocabulary::{gguf_tokenizer, gguf_vocabulary};
use crate::{Error, Pooling, Result};

/// Endings of classes with a task's head, which GGUF cannot store.
const TASKS: [&str; 7] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForReward",
    "RewardModel",
];

/// Files whose contents are in the GGUF file, or that repeat others.
const SAID: [&str; 17] = [
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "ice_text.model",
    "qwen.tiktoken",
    "vocab.json",
    "encoder.json",
    "merges.txt",
    "vocab.bpe",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TOKENIZER_CONFIG,
];

/// Keys of `config.json` that no reader of GGUF needs: how the model was trained or is run by
/// `transformers`, and what the tensors and the tokenizer say.
const NOT_NEEDED: [&str; 36] = [
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "_attn_implementation",
    "attn_implementation",
    "use_cache",
    "initializer_range",
    "initializer_factor",
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "dropout",
    "classifier_dropout",
    "pretraining_tp",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "gradient_checkpointing",
    "is_encoder_decoder",
    "cache_implementation",
    "max_window_layers",
    "_sliding_window_pattern",
    "layer_types",
    "position_embedding_type",
    "torchscript",
    "model_max_length",
    "tokenizer_class",
];

/// Keys of a GGUF file that describe it alone: its parts and its quantisation.
const OF_FILE: [&str; 5] = [
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "split.",
    "quantize.",
];

/// The key of the default template, and the start of those of others.
pub(super) const TEMPLATES: &str = "tokenizer.chat_template";

impl Writing<'_> {
    pub(super) fn gguf(&self, file: &Path, file_type: FileType, target: &Path) -> Result<Written> {
        let mut written = Written::default();
        let name = self.source.file_stem().or(target.file_stem()).unwrap_or_default();
        let mut name = name.to_string_lossy().into_owned();
        let mut more = Metadata::default();
        let tokenizer;
        if self.source.is_file() {
            let source = ModelSource::open(self.source)?;
            written.leave("tensors", self.model.unused_tensors(source.checkpoint()));
            let metadata = source.gguf_metadata().cloned().unwrap_or_default();
            if let Some(known) = metadata.string("general.name")? {
                known.clone_into(&mut name);
            }
            // Those of the tokenizer are copied, because they contain more than lehr reads.
            let mut kept = Metadata::default();
            for (key, value) in metadata.entries() {
                match () {
                    () if key.starts_with("tokenizer.") => kept.set(key.clone(), value.clone()),
                    () if OF_FILE.iter().any(|start| key.starts_with(start)) => {
                        if key.starts_with("quantize.") {
                            written.leave("GGUF keys", [key.clone()]);
                        }
                    }
                    () => more.set(key.clone(), value.clone()),
                }
            }
            if let Some(own) = self.tokenizer.filter(|_| self.texts != self.source) {
                let parts = template_parts_of(self.texts)?;
                if let Some(template) = &parts.jinja {
                    kept.set(TEMPLATES, template.as_str());
                }
                let lost = set_ends(&mut kept, own, &parts.eos_ids);
                written.leave("ids that end a text, lost:", lost.iter().map(u32::to_string));
            }
            tokenizer = kept;
        } else {
            self.refuse_task_heads()?;
            tokenizer = self.vocabulary(&mut written)?;
            if let Some(pooling) = self.pooling(&mut written) {
                more.set("ARCH.pooling_type", pooling);
            }
            self.name_the_rest(&mut written)?;
        }
        let options = GgufOptions { name: &name, file_type, tokenizer, more };
        let summary = self.model.save_gguf(file, &options)?;
        written.formats = summary.formats;
        written.leave("parameters", summary.left_out);
        Ok(written)
    }

    /// Refuses classifiers and their like: without its head, the copy would be another model.
    fn refuse_task_heads(&self) -> Result<()> {
        let config = read_json(&self.source.join("config.json"))?;
        let class = config["architectures"][0].as_str().unwrap_or_default().to_owned();
        match TASKS.iter().any(|end| class.ends_with(end)) {
            true => Err(Error::NoPlace { path: self.source.to_owned(), found: class }),
            false => Ok(()),
        }
    }

    /// Returns the tokenizer's keys. Checks that they give the same ids before weights are written.
    fn vocabulary(&self, written: &mut Written) -> Result<Metadata> {
        let Some(tokenizer) = self.tokenizer else { return Ok(Metadata::default()) };
        let mut metadata = gguf_vocabulary(tokenizer, self.model.spec().vocab_size)?;
        let parts = template_parts_of(self.texts)?;
        if let Some(template) = &parts.jinja {
            metadata.set("tokenizer.chat_template", template.as_str());
        }
        self.further_templates(&mut metadata)?;
        let lost = set_ends(&mut metadata, tokenizer, &parts.eos_ids);
        let named = |id: &u32| format!("{id} {:?}", tokenizer.token(*id).unwrap_or_default());
        written.leave("ids that end a text, lost:", lost.iter().map(named));
        written.leave("parts of the tokenizer", VocabParts::unsaid(tokenizer));
        let again = gguf_tokenizer(&metadata)?;
        let faults = crate::proof::tokenizer_faults(tokenizer, &again);
        match faults.is_empty() {
            true => Ok(metadata),
            false => Err(Error::Unproven { path: self.target.to_owned(), faults }),
        }
    }

    /// Adds the templates beside the default one, such as one for tools.
    fn further_templates(&self, metadata: &mut Metadata) -> Result<()> {
        let config = raw(self.texts, TOKENIZER_CONFIG)?.unwrap_or_default();
        let templates = config.get("chat_template").unwrap_or_default();
        let text = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
        let mut names = Vec::new();
        for entry in templates.as_array().into_iter().flatten() {
            if let (Some(name), Some(template)) = (text(entry, "name"), text(entry, "template"))
                && name != "default"
            {
                metadata.set(format!("{TEMPLATES}.{name}"), template.as_str());
                names.push(name);
            }
        }
        if !names.is_empty() {
            metadata.set(format!("{TEMPLATES}s"), Array::String(names));
        }
        Ok(())
    }

    /// Returns the number of the pooling in GGUF, if the source names one.
    fn pooling(&self, written: &mut Written) -> Option<u32> {
        match Settings::read(self.source) {
            Ok(Settings { pooling, .. }) => pooling.map(|pooling| match pooling {
                Pooling::Mean => 1,
                Pooling::First => 2,
                Pooling::Last => 3,
            }),
            // An unknown pooling: `lehr embed` refuses the source as well.
            Err(error) => {
                written.leave("pooling", [error.to_string()]);
                None
            }
        }
    }

    /// Names what the folder has besides and the file cannot say.
    fn name_the_rest(&self, written: &mut Written) -> Result<()> {
        if Shards::open(self.source)?.is_none() {
            let unused = self.model.unused_tensors(&Checkpoint::open(self.source)?);
            written.leave("tensors", unused);
        }
        let config = read_json(&self.source.join("config.json"))?;
        let known = self.model.config().to_json();
        let is_lost = |(key, value): &(&String, &Value)| {
            let is_said = known.get(key).is_some() || NOT_NEEDED.contains(&key.as_str());
            !is_said && !value.is_null()
        };
        let keys = config.as_object().into_iter().flatten().filter(is_lost);
        written.leave("keys of config.json", keys.map(|(key, _)| key.clone()));
        let settings = files::generation_settings(self.texts)?;
        written.leave("settings of generation_config.json", settings);
        let mut said = SAID.to_vec();
        said.extend([GENERATION_CONFIG, "modules.json"]);
        for file in files::list(self.source)? {
            let name = file.name();
            let is_pooling = name.ends_with("_Pooling/config.json");
            if file.fate != Fate::Rewritten && !said.contains(&&*name) && !is_pooling {
                written.leave("files", [name]);
            }
        }
        Ok(())
    }
}

/// Sets the ids that end a text. GGUF has three keys: the end of a text, of a turn, and of a
/// message in the middle of a turn. Returns the ids for which there is none.
fn set_ends(metadata: &mut Metadata, tokenizer: &Tokenizer, ends: &[u32]) -> Vec<u32> {
    let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    let mut rest: Vec<u32> = Vec::new();
    for id in ends {
        if !rest.contains(id) {
            rest.push(*id);
        }
    }
    match tokenizer.special_ids().eos {
        Some(eos) => rest.retain(|id| *id != eos),
        None if rest.is_empty() => {}
        None => metadata.set(key("eos"), rest.remove(0)),
    }
    let is_eom = |id: &u32| tokenizer.token(*id).as_deref() == Some("<|eom_id|>");
    let eom = rest.iter().position(is_eom).map(|at| rest.remove(at));
    let is_eot = |id: &u32| Some(*id) == tokenizer.special_ids().eot;
    let eot = rest.iter().position(is_eot).or((!rest.is_empty()).then_some(0));
    if let Some(eot) = eot.map(|at| rest.remove(at)) {
        metadata.set(key("eot"), eot);
    }
    let eom = eom.or_else(|| (!rest.is_empty()).then(|| rest.remove(0)));
    if let Some(eom) = eom {
        metadata.set(key("eom"), eom);
    }
    rest
}
