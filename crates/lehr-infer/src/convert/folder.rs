//! Writing a copy as a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lehr_model::ModelCopy;
use lehr_model::io::{Checkpoint, FloatFormat, ModelSource, RawObject, Shards};
use lehr_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::files::{self, Fate};
use super::gguf::TEMPLATES;
use super::{LeftOut, Writing, Written, io, write_text};
use crate::model_files::{GENERATION_CONFIG, TOKENIZER_CONFIG};
use crate::model_files::{raw, set_end_ids, text, tokenizer_config};
use crate::pooling::Settings;
use crate::vocabulary::gguf_template_parts;
use crate::{Pooling, Result};

/// Metadata of a GGUF file that a folder has in its own form, or that describes the file alone.
const GGUF_OWN: [&str; 7] = [
    "general.architecture",
    "general.type",
    "general.name",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
    "general.size_label",
];

/// Files about tokens and conversations in a checkpoint of training.
const TEXTS: [&str; 5] = [
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
];

impl Writing<'_> {
    /// Writes a folder with all that the source has.
    pub(super) fn folder(&self, dir: &Path, format: FloatFormat) -> Result<Written> {
        // Listed first: the copy may lie below the source.
        let found = if self.source.is_dir() { files::list(self.source)? } else { Vec::new() };
        fs::create_dir_all(dir).map_err(io("creating", dir))?;
        let mut written = Written::default();
        if self.source.is_dir() {
            self.weights_of_folder(dir, format, &mut written)?;
            for file in found {
                match file.fate {
                    Fate::Copied => {
                        files::copy(self.source, dir, &file.path)?;
                        written.copied.push(file.name());
                    }
                    Fate::Rewritten => {}
                    Fate::LeftOut => written.leave("files", [file.name()]),
                }
            }
        } else {
            self.model.save_as(dir, format)?;
            self.texts_of_gguf(dir, &mut written)?;
        }
        if self.texts != self.source {
            for name in TEXTS.map(Path::new).iter().filter(|name| self.texts.join(name).is_file()) {
                files::copy(self.texts, dir, name)?;
            }
        }
        if self.source.is_dir() {
            self.complete_tokenizer(dir)?;
        }
        let n = self.model.params().named().len() + written.extra.len();
        written.formats = BTreeMap::from([(format.name().to_uppercase(), n)]);
        Ok(written)
    }

    fn weights_of_folder(
        &self,
        dir: &Path,
        format: FloatFormat,
        written: &mut Written,
    ) -> Result<()> {
        let config = text(self.source, "config.json")?;
        let checkpoint = match Shards::open(self.source)? {
            Some(_) => None,
            None => Some(Checkpoint::open(self.source)?),
        };
        if let Some(checkpoint) = &checkpoint {
            let unused = self.model.unused_tensors(checkpoint);
            let is_float = |name: &String| {
                let shape = checkpoint.shape(name).unwrap_or_default();
                shape.len() <= 4 && checkpoint.tensor(name, shape.into()).is_ok()
            };
            let (extra, others): (Vec<_>, Vec<_>) = unused.into_iter().partition(is_float);
            written.leave("tensors that are not floats", others);
            written.extra = extra;
        }
        let extra = checkpoint.as_ref().map(|checkpoint| (checkpoint, &written.extra[..]));
        let copy = ModelCopy { config: config.as_deref(), extra };
        let left_out = self.model.save_copy(dir, format, &copy)?;
        written.leave("keys of config.json", left_out);
        Ok(())
    }

    /// Adds the files that `transformers` needs to read the copied `tokenizer.json` unchanged.
    fn complete_tokenizer(&self, dir: &Path) -> Result<()> {
        let Some(tokenizer) = self.tokenizer else { return Ok(()) };
        let config = raw(dir, TOKENIZER_CONFIG)?;
        let is_whole = config.as_ref().is_some_and(|c| c.text("tokenizer_class").is_some());
        if is_whole || !dir.join("tokenizer.json").is_file() {
            return Ok(());
        }
        let config = tokenizer_config(config, tokenizer);
        write_text(&dir.join(TOKENIZER_CONFIG), &config.to_text())
    }

    /// Writes the small files of a folder from the metadata of a GGUF file.
    fn texts_of_gguf(&self, dir: &Path, written: &mut Written) -> Result<()> {
        let source = ModelSource::open(self.source)?;
        let metadata = source.gguf_metadata().cloned().unwrap_or_default();
        written.leave("tensors", self.model.unused_tensors(source.checkpoint()));
        let arch = metadata.string("general.architecture")?.unwrap_or_default();
        // A folder made from a file has the default template.
        let further = format!("{TEMPLATES}.");
        let is_said = |key: &str| {
            GGUF_OWN.contains(&key)
                || (key.starts_with("tokenizer.") && !key.starts_with(&further))
                || key.strip_prefix(arch).is_some_and(|rest| rest.starts_with('.'))
        };
        let keys = metadata.entries().iter().map(|(key, _)| key);
        written.leave("GGUF keys", keys.filter(|key| !is_said(key)).cloned());
        if let Some(pooling) = Settings::of_gguf(self.source, &metadata)?.pooling {
            self.write_pooling(dir, pooling)?;
        }
        let Some(tokenizer) = self.tokenizer else { return Ok(()) };
        tokenizer.save(dir.join("tokenizer.json"))?;
        let parts = gguf_template_parts(&metadata)?;
        let mut config = tokenizer_config(None, tokenizer);
        for (key, token) in &parts.special {
            config.set(key, token);
        }
        write_text(&dir.join(TOKENIZER_CONFIG), &config.to_text())?;
        if let Some(template) = &parts.jinja {
            write_text(&dir.join("chat_template.jinja"), template)?;
        }
        write_text(&dir.join(GENERATION_CONFIG), &generation(tokenizer, &parts.eos_ids).to_text())
    }

    /// Writes the files of sentence-transformers.
    fn write_pooling(&self, dir: &Path, pooling: Pooling) -> Result<()> {
        let module = |idx: usize, path: &str, kind: &str| {
            let kind = format!("sentence_transformers.models.{kind}");
            json!({ "idx": idx, "name": idx.to_string(), "path": path, "type": kind })
        };
        let modules = json!([
            module(0, "", "Transformer"),
            module(1, "1_Pooling", "Pooling"),
            module(2, "2_Normalize", "Normalize"),
        ]);
        let flag = |which| Value::from(pooling == which);
        let settings = json!({
            "word_embedding_dimension": self.model.spec().hidden_size,
            "pooling_mode_cls_token": flag(Pooling::First),
            "pooling_mode_mean_tokens": flag(Pooling::Mean),
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
            "pooling_mode_weightedmean_tokens": false,
            "pooling_mode_lasttoken": flag(Pooling::Last),
        });
        let place = dir.join("1_Pooling");
        fs::create_dir_all(&place).map_err(io("creating", &place))?;
        write_text(&place.join("config.json"), &format!("{settings:#}\n"))?;
        write_text(&dir.join("modules.json"), &format!("{modules:#}\n"))
    }
}

fn generation(tokenizer: &Tokenizer, ends: &[u32]) -> RawObject {
    let mut generation = RawObject::default();
    if let Some(bos) = tokenizer.special_ids().bos {
        generation.set("bos_token_id", &bos.into());
    }
    set_end_ids(&mut generation, ends);
    generation
}

impl Written {
    /// Notes what the copy does not have.
    pub(super) fn leave(&mut self, what: &'static str, names: impl IntoIterator<Item = String>) {
        let names: Vec<String> = names.into_iter().collect();
        match self.left_out.iter_mut().find(|left| left.what == what) {
            Some(left) => left.names.extend(names),
            None if names.is_empty() => {}
            None => self.left_out.push(LeftOut { what, names }),
        }
    }
}
