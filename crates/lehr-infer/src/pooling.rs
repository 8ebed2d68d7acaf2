//! Pooling settings of a model, read from the files of sentence-transformers or from GGUF.

use std::path::Path;

use lehr_model::io::gguf::Metadata;
use lehr_model::io::read_json;

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
    /// Whether texts are lower-cased first.
    pub(crate) lower_case: bool,
}

impl Settings {
    /// Reads `{architecture}.pooling_type` of a GGUF file: 1 = mean, 2 = first, 3 = last.
    pub(crate) fn of_gguf(metadata: &Metadata) -> Result<Self> {
        let arch = metadata.string("general.architecture")?.unwrap_or_default();
        let pooling = match metadata.integer(&format!("{arch}.pooling_type"))? {
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::First),
            Some(3) => Some(Pooling::Last),
            _ => None,
        };
        Ok(Self { pooling, max_tokens: None, prefix: String::new(), lower_case: false })
    }

    /// Reads `modules.json` and the files it names, where they exist.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut settings =
            Self { pooling: None, max_tokens: None, prefix: String::new(), lower_case: false };
        let path = dir.join("sentence_bert_config.json");
        if path.is_file() {
            let json = read_json(&path)?;
            let max = json.get("max_seq_length").and_then(|v| v.as_u64());
            settings.max_tokens = max.and_then(|max| usize::try_from(max).ok());
            settings.lower_case = json.get("do_lower_case").is_some_and(|v| *v == true);
        }
        let path = dir.join("config_sentence_transformers.json");
        if path.is_file() {
            let json = read_json(&path)?;
            let name = json.get("default_prompt_name").and_then(|v| v.as_str());
            let prompt = name.and_then(|name| json.get("prompts")?.get(name)?.as_str());
            settings.prefix = prompt.unwrap_or_default().to_owned();
        }
        let path = dir.join("modules.json");
        if path.is_file() {
            settings.read_modules(dir, &path)?;
        }
        Ok(settings)
    }

    fn read_modules(&mut self, dir: &Path, path: &Path) -> Result<()> {
        let fault = |reason: String| Error::Pooling { path: path.to_owned(), reason };
        let json = read_json(path)?;
        let modules = json.as_array().ok_or_else(|| fault("expected a list".to_owned()))?;
        for module in modules {
            let kind = module.get("type").and_then(|v| v.as_str()).unwrap_or("missing");
            match kind.rsplit('.').next().unwrap_or(kind) {
                // All vectors are normalised anyway.
                "Transformer" | "Normalize" => {}
                "Pooling" => {
                    let folder = module.get("path").and_then(|v| v.as_str()).unwrap_or_default();
                    // A name that contains a path could read files outside the folder.
                    if Path::new(folder).file_name() != Some(folder.as_ref()) {
                        return Err(fault(format!("`{folder}` is not a plain folder name")));
                    }
                    let path = dir.join(folder).join("config.json");
                    self.pooling = Some(pooling(&path)?);
                }
                other => {
                    let known = "Transformer, Pooling and Normalize";
                    return Err(fault(format!("the module is {other}, expected {known}")));
                }
            }
        }
        Ok(())
    }
}

/// Reads the `config.json` of a pooling module.
fn pooling(path: &Path) -> Result<Pooling> {
    let json = read_json(path)?;
    let modes: Vec<String> = match json.get("pooling_mode").and_then(|v| v.as_str()) {
        Some(mode) => vec![mode.to_owned()],
        None => {
            let flags = json.as_object().into_iter().flatten().filter(|(_, on)| **on == true);
            flags.filter_map(|(name, _)| Some(name.strip_prefix("pooling_mode_")?.into())).collect()
        }
    };
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The sum divided by √n has the direction of the mean.
        ["mean" | "mean_tokens" | "mean_sqrt_len_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::First),
        ["lasttoken"] => Ok(Pooling::Last),
        _ => Err(Error::Pooling {
            path: path.to_owned(),
            reason: format!(
                "the pooling is {}, expected one of mean, cls and lasttoken",
                if modes.is_empty() { "missing".to_owned() } else { modes.join(" and ") }
            ),
        }),
    }
}
