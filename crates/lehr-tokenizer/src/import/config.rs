//! The settings in the files beside a tokenizer: `tokenizer_config.json`, `special_tokens_map.json`
//! and `added_tokens.json`.

use std::cell::RefCell;
use std::ops::Index;
use std::path::Path;

use serde_json::{Map, Value};

use super::assemble::Template;
use crate::keys::{Keys, not_used};
use crate::tokenizer::read;
use crate::{Error, Result};

/// Where a key is looked up, in this order.
const FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// Maps tokens to their ids.
const ADDED: &str = "added_tokens.json";

/// Keys that change neither ids nor text, by reason.
const WITHOUT_EFFECT: [(&str, &[&str]); 5] = [
    (
        "Python finds and builds its objects by them",
        &[
            "_commit_hash",
            "auto_map",
            "backend",
            "from_slow",
            "image_processor_type",
            "init_inputs",
            "is_local",
            "local_files_only",
            "merges_file",
            "name_or_path",
            "processor_class",
            "special_tokens_map_file",
            "tokenizer_class",
            "tokenizer_file",
            "tokenizer_type",
            "transformers_version",
            "trust_remote_code",
            "use_fast",
            "verbose",
            "vocab_file",
        ],
    ),
    (
        "each command pads and cuts by itself, and says so",
        &[
            "max_len",
            "max_length",
            "model_input_names",
            "model_max_length",
            "pad_to_multiple_of",
            "pad_token_type_id",
            "padding",
            "padding_side",
            "return_token_type_ids",
            "stride",
            "truncation_strategy",
        ],
    ),
    ("read with the chat template", &["chat_template"]),
    ("older versions of transformers without templates read it", &["use_default_system_prompt"]),
    (
        "text never becomes a special token here, and special tokens are not part of a text",
        &["spaces_between_special_tokens", "split_special_tokens"],
    ),
];

/// Keys that have no effect at this value, which is the library's own.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "add_bos_token"
        | "add_eos_token"
        | "add_prefix_space"
        | "clean_up_tokenization_spaces"
        | "do_lower_case"
        | "remove_space" => value == false,
        "do_basic_tokenize" | "keep_accents" | "tokenize_chinese_chars" => value == true,
        // SentencePiece alone; see `legacy` of its reader.
        "legacy" => true,
        "errors" => value == "replace",
        "truncation_side" => value == "right",
        "sp_model_kwargs" => value.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// The settings beside a tokenizer. Indexing returns the value of a key, or null, and records that
/// it was read.
#[derive(Debug, Default)]
pub(super) struct Config {
    files: Vec<(&'static str, Keys)>,
    /// The tokens of `added_tokens.json`, with their ids.
    added: Vec<(String, u32)>,
    warnings: RefCell<Vec<String>>,
}

impl Index<&str> for Config {
    type Output = Value;

    fn index(&self, key: &str) -> &Value {
        let values = self.files.iter().filter_map(|(_, keys)| keys.get(key)).collect::<Vec<_>>();
        values.into_iter().find(|value| !value.is_null()).unwrap_or(&Value::Null)
    }
}

impl Config {
    /// Reads the files beside `path`.
    pub(super) fn beside(path: &Path) -> Result<Self> {
        let mut config = Self::default();
        for name in FILES {
            if let Some(fields) = object(&path.with_file_name(name))? {
                config.files.push((name, Keys::new(fields)));
            }
        }
        let file = path.with_file_name(ADDED);
        for (name, id) in object(&file)?.unwrap_or_default() {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let reason = format!("the token {name:?} has the id {id}");
                Error::Json { path: Some(file.clone()), reason }
            })?;
            config.added.push((name, number));
        }
        config.added.sort_by_key(|(_, id)| *id);
        Ok(config)
    }

    /// The class that Python would build.
    pub(super) fn class(&self) -> &str {
        self["tokenizer_class"].as_str().unwrap_or_default()
    }

    /// The tokens of `added_tokens.json` by rising id.
    pub(super) fn added(&self) -> &[(String, u32)] {
        &self.added
    }

    /// The keys of all files, each once.
    pub(super) fn names(&self) -> Vec<&str> {
        let keys = self.files.iter().flat_map(|(_, keys)| keys.fields().keys());
        let mut names: Vec<&str> = keys.map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns the value of a key without recording that it was read.
    pub(super) fn peek(&self, key: &str) -> Option<&Value> {
        self.files.iter().find_map(|(_, keys)| keys.fields().get(key))
    }

    /// Changes the tokens around a text as `add_bos_token` and `add_eos_token` say.
    pub(super) fn frame(
        &self,
        frame: &mut Template,
        bos: Option<(String, u32)>,
        eos: Option<(String, u32)>,
    ) {
        for (key, tokens, token) in
            [("add_bos_token", &mut frame.before, bos), ("add_eos_token", &mut frame.after, eos)]
        {
            match self[key].as_bool() {
                Some(true) => *tokens = token.into_iter().collect(),
                Some(false) => tokens.clear(),
                None => {}
            }
        }
    }

    /// Adds a warning for the user.
    pub(super) fn warn(&self, text: String) {
        self.warnings.borrow_mut().push(text);
    }

    /// Returns what the user should know: the warnings so far, keys that nothing has read, and
    /// tokens on which two files disagree.
    pub(super) fn warnings(self) -> Vec<String> {
        let mut all = self.warnings.take();
        for (file, keys) in &self.files {
            let effect = |(key, value): &(&str, &Value)| {
                let without = |(_, names): &(&str, &[&str])| names.contains(key);
                !WITHOUT_EFFECT.iter().any(without) && !is_default(key, value)
            };
            let unread: Vec<String> =
                keys.unread().into_iter().filter(effect).map(|(key, _)| key.to_owned()).collect();
            all.extend(not_used(file, &unread));
        }
        if let [(first, config), (second, map)] = self.files.as_slice() {
            for (key, other) in map.fields() {
                let value = config.fields().get(key);
                let texts = (value.and_then(text_of), text_of(other));
                if let (Some(used), Some(other)) = texts
                    && used != other
                {
                    all.push(format!(
                        "{second}: {key} is {other:?}, but {first} says {used:?}, which is used"
                    ));
                }
            }
        }
        all
    }
}

/// The name of a token, which is written as a text or as an object with its settings.
pub(super) fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The object in a file, if there is such a file.
fn object(file: &Path) -> Result<Option<Map<String, Value>>> {
    if !file.is_file() {
        return Ok(None);
    }
    let bytes = read(file)?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    serde_json::from_slice(text)
        .map(Some)
        .map_err(|error| Error::Json { path: Some(file.into()), reason: error.to_string() })
}
