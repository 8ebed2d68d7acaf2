//! The texts that accompany the weights of a model in a folder.

use std::path::Path;

use lehr_model::ConfigFile;
use lehr_model::io::RawObject;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, TemplateParts};
use serde_json::{Value, json};

use crate::load::template_parts_of;
use crate::{Error, Result};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATES: [&str; 2] = ["chat_template.jinja", "chat_template.json"];

/// The class in `transformers` that reads any `tokenizer.json` unchanged.
const TOKENIZER_CLASS: &str = "PreTrainedTokenizerFast";

/// The files of a model that a further trained one keeps: configuration, settings of the tokenizer
/// and of generation, chat template.
#[derive(Clone, Debug, Default)]
pub struct ModelFiles {
    /// The text of `config.json`.
    config: Option<String>,
    tokenizer: Option<RawObject>,
    generation: Option<RawObject>,
    /// Names and texts of files that stay as they are.
    unchanged: Vec<(&'static str, String)>,
    /// The chat template and the ids that end a text.
    parts: TemplateParts,
}

impl ModelFiles {
    /// Reads the files of the model at `path`, which [`resolve_model`](crate::resolve_model)
    /// returned.
    ///
    /// # Errors
    /// If a file cannot be read or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let parts = template_parts_of(path)?;
        if path.is_file() {
            return Ok(Self { parts, ..Self::default() });
        }
        let mut tokenizer = raw(path, TOKENIZER_CONFIG)?;
        if let Some(config) = tokenizer.as_mut().filter(|_| !path.join("tokenizer.json").is_file())
        {
            // A trained model has tokenizer.json, which the class of another file does not read.
            config.remove("tokenizer_class");
            config.remove("auto_map");
        }
        let mut unchanged = Vec::new();
        for name in TEMPLATES.into_iter().chain([SPECIAL_TOKENS]) {
            unchanged.extend(text(path, name)?.map(|text| (name, text)));
        }
        Ok(Self {
            config: text(path, CONFIG)?,
            tokenizer,
            generation: raw(path, GENERATION_CONFIG)?,
            unchanged,
            parts,
        })
    }

    /// Returns the files for the same model with another tokenizer.
    #[must_use]
    pub fn with_other_tokenizer(self) -> Self {
        Self { config: self.config, ..Self::default() }
    }

    /// Returns the text of `config.json` for a model trained from this one, whose settings are
    /// `own`. Keys that lehr does not know stay.
    ///
    /// # Errors
    /// If the configuration of this model is not that of a known family.
    pub fn config(&self, own: &Value, tokenizer: &Tokenizer) -> Result<String> {
        let Some(source) = &self.config else { return Ok(format!("{own:#}\n")) };
        let mut json = ConfigFile::of_trained(source, own)?.json;
        if self.tokenizer.is_none() && self.parts.eos_ids.is_empty() {
            let ids = tokenizer.special_ids();
            for (key, id) in
                [("bos_token_id", ids.bos), ("eos_token_id", ids.eos), ("pad_token_id", ids.pad)]
            {
                if json.text(key).is_some() {
                    json.set(key, &id.into());
                }
            }
        }
        Ok(json.to_text())
    }

    /// Returns the other files of a model trained from this one, beside its weights and
    /// `tokenizer.json`. With them `transformers` reads the same ids, decodes to the same text and
    /// ends generation where lehr does. `template` is that of a model trained on conversations,
    /// `generates` says whether the model continues texts.
    ///
    /// # Errors
    /// If the tokenizer lacks a special token of the template.
    pub fn others(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        generates: bool,
    ) -> Result<Vec<(&'static str, String)>> {
        let new = template.filter(|new| self.parts.jinja.as_deref() != Some(new.source()));
        let mut files: Vec<_> = self.unchanged.clone();
        let mut config = tokenizer_config(self.tokenizer.clone(), tokenizer);
        match (new, &self.parts.jinja) {
            (Some(new), _) => {
                files.retain(|(name, _)| !TEMPLATES.contains(name));
                files.push((TEMPLATES[0], new.source().to_owned()));
                config.remove("chat_template");
            }
            // A template inside a GGUF file.
            (None, Some(jinja)) if self.config.is_none() => {
                files.push((TEMPLATES[0], jinja.clone()));
            }
            _ => {}
        }
        let given = template.map(|template| template.special().clone()).unwrap_or_default();
        for (key, token) in given.iter().chain(&self.parts.special) {
            if config.text(key).is_none() {
                config.set(key, token);
            }
        }
        files.push((TOKENIZER_CONFIG, config.to_text()));
        if generates {
            files.push((GENERATION_CONFIG, self.generation(tokenizer, template)?));
        } else if let Some(generation) = &self.generation {
            files.push((GENERATION_CONFIG, generation.to_text()));
        }
        Ok(files)
    }

    /// Returns the settings of generation, with every id at which lehr ends a text.
    fn generation(&self, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Result<String> {
        let mut ends = self.parts.eos_ids.clone();
        ends.extend(tokenizer.end_of_document().ok());
        if let Some(template) = template {
            ends.extend(template.stop_ids(tokenizer)?);
        }
        let mut generation = self.generation.clone().unwrap_or_default();
        set_end_ids(&mut generation, &ends);
        let ids = tokenizer.special_ids();
        for (key, id) in [("bos_token_id", ids.bos), ("pad_token_id", ids.pad)] {
            if let (None, Some(id)) = (generation.text(key), id) {
                generation.set(key, &id.into());
            }
        }
        Ok(generation.to_text())
    }
}

/// Sets the ids that end a text: one, or a list of several.
pub(crate) fn set_end_ids(generation: &mut RawObject, ids: &[u32]) {
    let mut distinct: Vec<u32> = Vec::new();
    for id in ids {
        if !distinct.contains(id) {
            distinct.push(*id);
        }
    }
    match distinct[..] {
        [] => {}
        [one] => generation.set("eos_token_id", &one.into()),
        _ => generation.set("eos_token_id", &json!(distinct)),
    }
}

/// Completes a `tokenizer_config.json` beside a `tokenizer.json`: the class that reads it
/// unchanged, the special tokens by purpose, and no clean-up of spaces, so that decoding gives the
/// text back.
pub(crate) fn tokenizer_config(config: Option<RawObject>, tokenizer: &Tokenizer) -> RawObject {
    let is_new = config.is_none();
    let mut config = config.unwrap_or_default();
    if config.text("tokenizer_class").is_none() {
        config.set("tokenizer_class", &TOKENIZER_CLASS.into());
    }
    if is_new {
        config.set("clean_up_tokenization_spaces", &false.into());
        let ids = tokenizer.special_ids();
        let purposes = [
            ("bos_token", ids.bos),
            ("eos_token", ids.eos.or(tokenizer.end_of_document().ok())),
            ("unk_token", ids.unk),
            ("sep_token", ids.sep),
            ("pad_token", ids.pad),
            ("cls_token", ids.cls),
            ("mask_token", ids.mask),
        ];
        for (key, id) in purposes {
            if let Some(name) = id.and_then(|id| tokenizer.token(id)) {
                config.set(key, &name.into());
            }
        }
    }
    config
}

/// Reads a file of `dir`, if it is there.
pub(crate) fn text(dir: &Path, name: &str) -> Result<Option<String>> {
    let path = dir.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "reading", path, source }),
    }
}

/// Reads a JSON object of `dir`, if it is there.
pub(crate) fn raw(dir: &Path, name: &str) -> Result<Option<RawObject>> {
    let parse = |text: String| {
        RawObject::parse(&text).map_err(|reason| {
            let path = dir.join(name);
            Error::Model(lehr_model::Error::Format { path, reason, hint: None })
        })
    };
    text(dir, name)?.map(parse).transpose()
}
