//! Pooling settings of a model, read from the files of sentence-transformers or from GGUF.

use std::path::Path;

use lehr_model::io::gguf::Metadata;
use lehr_model::io::read_json;
use serde_json::Value;

use crate::{Error, Result};

/// The reduction of the hidden states of a text to one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all hidden states.
    Mean,
    /// The hidden state of the first token, `[CLS]`.
    First,
    /// The hidden state of the last token, which in a decoder attends to the whole text.
    Last,
}

/// The settings of an embedding model.
pub(crate) struct Settings {
    /// The pooling; `None` = the model does not name one.
    pub(crate) pooling: Option<Pooling>,
    /// Longest text in tokens, special tokens included.
    pub(crate) max_tokens: Option<usize>,
    /// The prompt before each text.
    pub(crate) prefix: String,
    /// Whether the tokens of the prompt are pooled too.
    pub(crate) pools_prefix: bool,
    /// Whether texts are lower-cased first.
    pub(crate) lower_case: bool,
    /// What the user must know about settings that are not used.
    pub(crate) warnings: Vec<String>,
}

/// A JSON file of settings. It knows which keys were asked for and names the rest.
struct Keys {
    file: String,
    json: Value,
    asked: Vec<&'static str>,
}

impl Keys {
    fn read(dir: &Path, file: &str) -> Result<Self> {
        Ok(Self { file: file.to_owned(), json: read_json(&dir.join(file))?, asked: Vec::new() })
    }

    /// Returns the value of a key.
    fn get(&mut self, key: &'static str) -> Option<&Value> {
        self.asked.push(key);
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// Adds a warning that names the keys that were not asked for.
    fn warn(self, warnings: &mut Vec<String>) {
        let keys = self.json.as_object().into_iter().flatten();
        let rest = keys.filter(|(key, value)| {
            let is_empty = value.as_object().is_some_and(serde_json::Map::is_empty);
            !value.is_null() && !is_empty && !self.asked.contains(&key.as_str())
        });
        let list: Vec<_> = rest.map(|(key, value)| format!("`{key}` = {value}")).collect();
        if !list.is_empty() {
            let (file, list) = (self.file, list.join(", "));
            warnings.push(format!("keys of {file} that lehr does not read: {list}"));
        }
    }
}

impl Settings {
    fn none() -> Self {
        Self {
            pooling: None,
            max_tokens: None,
            prefix: String::new(),
            pools_prefix: true,
            lower_case: false,
            warnings: Vec::new(),
        }
    }

    /// Reads `{architecture}.pooling_type` of a GGUF file: 0 = none, 1 = mean, 2 = first, 3 = last.
    pub(crate) fn of_gguf(path: &Path, metadata: &Metadata) -> Result<Self> {
        let arch = metadata.string("general.architecture")?.unwrap_or_default();
        let pooling = match metadata.integer(&format!("{arch}.pooling_type"))? {
            // No pooling: the vector is that of a model that names none.
            None | Some(0) => None,
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::First),
            Some(3) => Some(Pooling::Last),
            Some(other) => {
                let reason = format!(
                    "{arch}.pooling_type is {other}, expected 0 to 3: none, mean, first or last"
                );
                return Err(Error::Pooling { path: path.to_owned(), reason });
            }
        };
        Ok(Self { pooling, ..Self::none() })
    }

    /// Reads `modules.json` and the files it names, where they exist.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut settings = Self::none();
        if dir.join("sentence_bert_config.json").is_file() {
            let mut keys = Keys::read(dir, "sentence_bert_config.json")?;
            let max = keys.get("max_seq_length").and_then(Value::as_u64);
            settings.max_tokens = max.and_then(|max| usize::try_from(max).ok());
            settings.lower_case = keys.get("do_lower_case").is_some_and(|v| *v == true);
            keys.warn(&mut settings.warnings);
        }
        if dir.join("config_sentence_transformers.json").is_file() {
            settings.read_prompts(dir)?;
        }
        if dir.join("modules.json").is_file() {
            settings.read_modules(dir)?;
        }
        Ok(settings)
    }

    fn read_prompts(&mut self, dir: &Path) -> Result<()> {
        let mut keys = Keys::read(dir, "config_sentence_transformers.json")?;
        // Versions of programs, and the kind of model, which `modules.json` says.
        for harmless in ["__version__", "model_type"] {
            keys.get(harmless);
        }
        let name = keys.get("default_prompt_name").and_then(Value::as_str).map(str::to_owned);
        let prompts = keys.get("prompts").and_then(Value::as_object).cloned().unwrap_or_default();
        let prompt = name.as_ref().and_then(|name| prompts.get(name)?.as_str());
        self.prefix = prompt.unwrap_or_default().to_owned();
        let others = prompts.iter().filter(|(other, text)| {
            Some(*other) != name.as_ref() && text.as_str().is_some_and(|text| !text.is_empty())
        });
        let others: Vec<_> = others.map(|(name, text)| format!("{name} = {text}")).collect();
        if !others.is_empty() {
            self.warnings.push(format!(
                "the model has prompts that are not used by themselves: {}; give one with --prefix",
                others.join(", ")
            ));
        }
        // Vectors of length 1 have the same dot product and cosine.
        if let Some(name) = keys.get("similarity_fn_name").and_then(Value::as_str)
            && !["cosine", "dot"].contains(&name)
        {
            let warning = format!("similarity_fn_name is {name}; lehr shows cosines");
            self.warnings.push(warning);
        }
        keys.warn(&mut self.warnings);
        Ok(())
    }

    fn read_modules(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("modules.json");
        let fault = |reason: String| Error::Pooling { path: path.clone(), reason };
        let json = read_json(&path)?;
        let modules = json.as_array().ok_or_else(|| fault("expected a list".to_owned()))?;
        let mut is_normalised = false;
        for module in modules {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or("missing");
            match kind.rsplit('.').next().unwrap_or(kind) {
                "Transformer" => {}
                // All vectors are normalised anyway.
                "Normalize" => is_normalised = true,
                "Pooling" => {
                    let folder = module.get("path").and_then(Value::as_str).unwrap_or_default();
                    // A name that contains a path could read files outside the folder.
                    if Path::new(folder).file_name() != Some(folder.as_ref()) {
                        return Err(fault(format!("`{folder}` is not a plain folder name")));
                    }
                    self.read_pooling(&dir.join(folder))?;
                }
                other => {
                    let known = "Transformer, Pooling and Normalize";
                    return Err(fault(format!("the module is {other}, expected {known}")));
                }
            }
        }
        if !is_normalised {
            let text = "modules.json has no Normalize; lehr scales all vectors to length 1";
            self.warnings.push(text.to_owned());
        }
        self.warn_of_folders(dir, modules)
    }

    /// Names folders of modules that `modules.json` does not name, such as `2_Dense`.
    fn warn_of_folders(&mut self, dir: &Path, modules: &[Value]) -> Result<()> {
        let failed = |source| Error::Io { action: "listing", path: dir.to_owned(), source };
        let mut unnamed = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let is_module = name.split_once('_').is_some_and(|(number, kind)| {
                number.parse::<usize>().is_ok() && kind.starts_with(char::is_uppercase)
            });
            let is_named = modules.iter().any(|m| m.get("path").is_some_and(|path| *path == *name));
            if is_module && !is_named && dir.join(&name).is_dir() {
                unnamed.push(name);
            }
        }
        if !unnamed.is_empty() {
            unnamed.sort();
            let list = unnamed.join(", ");
            let text =
                format!("modules.json does not name these folders, which are not used: {list}");
            self.warnings.push(text);
        }
        Ok(())
    }

    /// Reads the `config.json` of a pooling module.
    fn read_pooling(&mut self, dir: &Path) -> Result<()> {
        let mut keys = Keys::read(dir, "config.json")?;
        for harmless in ["word_embedding_dimension", "embedding_dimension"] {
            keys.get(harmless);
        }
        self.pools_prefix = keys.get("include_prompt").is_none_or(|include| *include != false);
        let modes: Vec<String> = match keys.get("pooling_mode").cloned() {
            Some(Value::String(mode)) => vec![mode],
            Some(Value::Array(modes)) => modes
                .iter()
                .map(|mode| mode.as_str().map_or(mode.to_string(), str::to_owned))
                .collect(),
            Some(other) => vec![other.to_string()],
            None => {
                let flags = keys.json.as_object().into_iter().flatten();
                let on = flags.filter(|(_, on)| **on == true);
                on.filter_map(|(name, _)| Some(name.strip_prefix(FLAG)?.into())).collect()
            }
        };
        if let Some(map) = keys.json.as_object_mut() {
            map.retain(|key, _| !key.starts_with(FLAG));
        }
        keys.file =
            format!("{}/config.json", dir.file_name().unwrap_or_default().to_string_lossy());
        keys.warn(&mut self.warnings);
        self.pooling = Some(match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            // The sum divided by √n has the direction of the mean.
            ["mean" | "mean_tokens" | "mean_sqrt_len_tokens"] => Pooling::Mean,
            ["cls" | "cls_token"] => Pooling::First,
            ["lasttoken"] => Pooling::Last,
            _ => {
                let found =
                    if modes.is_empty() { "missing".to_owned() } else { modes.join(" and ") };
                let reason =
                    format!("the pooling is {found}, expected one of mean, cls and lasttoken");
                return Err(Error::Pooling { path: dir.join("config.json"), reason });
            }
        });
        Ok(())
    }
}

/// Beginning of the switches of pooling modes.
const FLAG: &str = "pooling_mode_";
