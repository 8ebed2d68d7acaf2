//! Choice of a model's chat template.

use serde_json::{Map, Value};

use super::{ChatTemplate, builtin, jinja};
use crate::{Error, Result, Tokenizer};

/// Contents of a model's files about its chat template.
#[derive(Debug, Clone, Default)]
pub struct TemplateParts {
    /// A Jinja template: `chat_template.jinja`, the `chat_template` of `tokenizer_config.json`, or
    /// `tokenizer.chat_template` of a GGUF file.
    pub jinja: Option<String>,
    /// `bos_token`, `eos_token` and further special tokens by the names templates use.
    pub special: Map<String, Value>,
    /// Ids that end generation, from `generation_config.json` and `config.json`.
    pub eos_ids: Vec<u32>,
    /// The model's family: `model_type` of `config.json`.
    pub family: Option<String>,
}

/// Files that may describe the template.
const FILES: [&str; 6] = [
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
];

impl TemplateParts {
    /// Reads the files of a Hugging Face folder; `file` gives the text of one, if it is there.
    ///
    /// # Errors
    /// A file is not JSON, or its `chat_template` is neither a text nor a list of named texts.
    pub fn from_files<E: From<Error>>(
        mut file: impl FnMut(&'static str) -> std::result::Result<Option<String>, E>,
    ) -> std::result::Result<Self, E> {
        let mut parts = Self { jinja: file(FILES[0])?, ..Self::default() };
        for name in &FILES[1..] {
            let Some(text) = file(name)? else { continue };
            let value: Value =
                serde_json::from_str(&text).map_err(|error| fault(name, &error.to_string()))?;
            parts.read(name, &value)?;
        }
        Ok(parts)
    }

    fn read(&mut self, file: &str, value: &Value) -> Result<()> {
        if let (None, Some(template)) = (&self.jinja, value.get("chat_template")) {
            self.jinja = named_default(file, template)?;
        }
        for (key, token) in value.as_object().into_iter().flatten() {
            let text = token.as_str().or_else(|| token.get("content").and_then(Value::as_str));
            if let (true, Some(text)) = (key.ends_with("_token"), text) {
                self.special.entry(key.clone()).or_insert_with(|| text.into());
            }
        }
        if file.ends_with("config.json") && !file.starts_with("tokenizer") {
            let ids = match value.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.clone(),
                other => other.cloned().into_iter().collect(),
            };
            let ids = ids.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            self.eos_ids.extend(ids);
        }
        if let ("config.json", Some(family)) =
            (file, value.get("model_type").and_then(Value::as_str))
        {
            self.family = Some(family.to_owned());
        }
        Ok(())
    }
}

/// The template of a `chat_template` entry: itself, or of a list the one named `default`, else the
/// first.
fn named_default(file: &str, template: &Value) -> Result<Option<String>> {
    match template {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(list) => {
            let named =
                |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            let entry = list.iter().find(named).or_else(|| list.first());
            let text = entry.and_then(|entry| entry.get("template")).and_then(Value::as_str);
            let text = text.ok_or_else(|| {
                fault(file, "chat_template is a list without {\"name\", \"template\"}")
            })?;
            Ok(Some(text.to_owned()))
        }
        _ => Err(fault(
            file,
            "chat_template is neither a text nor a list of {\"name\", \"template\"}",
        )),
    }
}

fn fault(file: &str, reason: &str) -> Error {
    Error::Template { action: "reading", name: file.to_owned(), reason: reason.to_owned() }
}

impl ChatTemplate {
    /// The template of a model: its own, or else the built-in one that its special tokens identify.
    ///
    /// # Errors
    /// Its template is not Jinja, or it has none and its tokens identify none: the error lists the
    /// built-in names.
    pub fn for_model(tokenizer: &Tokenizer, parts: &TemplateParts) -> Result<Self> {
        let TemplateParts { jinja, special, eos_ids, family } = parts;
        if let Some(source) = jinja {
            return match builtin::with_source(&jinja::normalized(source)) {
                Some(builtin) => Self::by_name_with(builtin.name, special.clone(), eos_ids.clone()),
                None => Self::from_jinja("chat_template", source, special.clone(), eos_ids.clone()),
            };
        }
        let name = Self::recognise(tokenizer).ok_or_else(|| Error::NoTemplate {
            found: format!(
                "the model{} brings none and its tokenizer has the special tokens of no known one",
                family
                    .as_ref()
                    .map(|family| format!(" (of the family {family})"))
                    .unwrap_or_default()
            ),
            names: Self::names(),
        })?;
        Self::by_name_with(name, special.clone(), eos_ids.clone())
    }

    /// The files by which a model keeps this template, with their texts: what
    /// [`TemplateParts::from_files`] reads.
    #[must_use]
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut files = vec![(FILES[0], self.source().to_owned())];
        if !self.special().is_empty() {
            files.push((FILES[2], format!("{:#}\n", Value::Object(self.special().clone()))));
        }
        if !self.inner.eos_ids.is_empty() {
            files.push((
                FILES[4],
                format!("{:#}\n", serde_json::json!({ "eos_token_id": self.inner.eos_ids })),
            ));
        }
        files
    }
}
