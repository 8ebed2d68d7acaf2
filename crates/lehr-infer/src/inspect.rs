//! Description of a model without loading its weights.

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, ModelSource, read_json};
use lehr_model::{Config, Outline, StoredTensor};
use lehr_tokenizer::Tokenizer;

use crate::{Result, resolve_model};

/// Files that may hold a tokenizer, besides `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 4] = ["tokenizer.model", "vocab.txt", "vocab.json", "merges.txt"];

/// The description of a model.
pub struct Inspection {
    /// The inspected folder or file.
    pub path: PathBuf,
    /// Its configuration, if lehr supports the family.
    pub config: Option<Config>,
    /// Its parameters, if configuration and weights belong together.
    pub outline: Option<Outline>,
    /// Every tensor of the files.
    pub stored: Vec<StoredTensor>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<TokenizerFacts>,
    /// The chat template, if the files contain one.
    pub chat_template: Option<String>,
    /// What the files say and the model does not use.
    pub warnings: Vec<String>,
    /// The problems found.
    pub problems: Vec<String>,
}

/// The description of a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFacts {
    /// The algorithm: `BPE`, `Unigram`, `WordPiece`, or the file's own word for it.
    pub kind: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// Special tokens with their ids, in order.
    pub special: Vec<(u32, String)>,
}

impl Inspection {
    /// Inspects a run directory, a checkpoint, a Hugging Face folder, a GGUF file or a file of
    /// weights. An error of one part is added to `problems`.
    ///
    /// # Errors
    /// If there is no model, or the weights cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::of_file(path);
        }
        let dir = resolve_model(path)?;
        let source = ModelSource::open(&dir)?;
        let mut found = Self::empty(&dir, source.checkpoint());
        found.understand(Config::from_json(source.config()), source.checkpoint());
        found.warnings.extend(lehr_model::Model::source_warnings(&source));
        found.tokenizer = found.tokenizer_of(&dir);
        found.chat_template = chat_template_of(&dir);
        Ok(found)
    }

    fn of_file(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let mut found = Self::empty(path, &checkpoint);
        found.warnings.extend_from_slice(checkpoint.warnings());
        match checkpoint.gguf_config() {
            Some(config) => found.understand(Config::from_json(config), &checkpoint),
            None => found.problems.push("a file of weights without a configuration".to_owned()),
        }
        if let Some(metadata) = checkpoint.gguf_metadata() {
            let text = |key: &str| metadata.string(key).ok().flatten().map(str::to_owned);
            let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten();
            // 3 is a control token.
            let types = metadata.integers("tokenizer.ggml.token_type").ok().flatten();
            let special =
                tokens.iter().flat_map(|tokens| tokens.iter()).zip(types.iter().flatten());
            let special = (0u32..).zip(special).filter(|(_, (_, kind))| **kind == 3);
            found.tokenizer = tokens.map(|tokens| TokenizerFacts {
                kind: text("tokenizer.ggml.model").unwrap_or_default(),
                vocab_size: tokens.len(),
                special: special.map(|(id, (token, _))| (id, token.clone())).collect(),
            });
            found.chat_template = text("tokenizer.chat_template");
        }
        Ok(found)
    }

    fn empty(path: &Path, checkpoint: &Checkpoint) -> Self {
        Self {
            path: path.to_owned(),
            config: None,
            outline: None,
            stored: checkpoint.stored().collect(),
            tokenizer: None,
            chat_template: None,
            warnings: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn understand(&mut self, config: lehr_model::Result<Config>, checkpoint: &Checkpoint) {
        let outlined = config.and_then(|config| {
            self.config = Some(config.clone());
            Outline::new(config, checkpoint)
        });
        match outlined {
            Ok(outline) => {
                self.warnings.extend_from_slice(&outline.warnings);
                self.outline = Some(outline);
            }
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    fn tokenizer_of(&mut self, dir: &Path) -> Option<TokenizerFacts> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let other = OTHER_TOKENIZERS.iter().find(|name| dir.join(name).is_file());
            self.problems.push(match other {
                Some(name) => format!("the tokenizer is in {name}, not in tokenizer.json"),
                None => "there is no tokenizer.json".to_owned(),
            });
            return None;
        }
        let facts = |tokenizer: Tokenizer| {
            let json = read_json(&path).ok();
            let kind = json.as_ref().and_then(|json| json.get("model")?.get("type")?.as_str());
            let ids = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id));
            TokenizerFacts {
                // Old files without a kind are BPE.
                kind: kind.unwrap_or("BPE").to_owned(),
                vocab_size: tokenizer.vocab_size(),
                special: ids.map(|id| (id, tokenizer.decode(&[id]))).collect(),
            }
        };
        let read = Tokenizer::from_file(&path);
        read.map(facts).map_err(|error| self.problems.push(error.to_string())).ok()
    }

    /// Returns the tensors of the files that the model does not use.
    pub fn unused(&self) -> impl Iterator<Item = &StoredTensor> {
        let used = self.outline.iter().flat_map(|outline| &outline.parameters);
        let used: std::collections::BTreeSet<_> = used.map(|p| p.stored_as.as_str()).collect();
        self.stored.iter().filter(move |stored| !used.contains(stored.name.as_str()))
    }
}

/// Reads the template of `chat_template.jinja` or `tokenizer_config.json`. If there are several,
/// takes the one named `default`, otherwise the first.
fn chat_template_of(dir: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(dir.join("chat_template.jinja")) {
        return Some(text);
    }
    let json = read_json(&dir.join("tokenizer_config.json")).ok()?;
    let template = json.get("chat_template")?;
    if let Some(text) = template.as_str() {
        return Some(text.to_owned());
    }
    let named = template.as_array()?;
    let default = named.iter().find(|t| t.get("name").is_some_and(|name| name == "default"));
    Some(default.or(named.first())?.get("template")?.as_str()?.to_owned())
}
