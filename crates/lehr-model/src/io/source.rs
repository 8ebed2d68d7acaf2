//! The source of a model: a folder of files, or one file with everything.

use std::path::Path;

use serde_json::Value;

use super::gguf::Metadata;
use super::{Checkpoint, read_json};
use crate::{Error, Result};

/// The configuration and the weights of a model, from a Hugging Face folder or a GGUF file.
pub struct ModelSource {
    config: Value,
    checkpoint: Checkpoint,
}

impl ModelSource {
    /// Opens a folder with `config.json` and weights, or a GGUF file.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            let config = read_json(&path.join("config.json"))?;
            return Ok(Self { config, checkpoint: Checkpoint::open(path)? });
        }
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.gguf_config().cloned().ok_or_else(|| Error::Format {
            path: path.to_owned(),
            reason: "this file has weights and no configuration".to_owned(),
            hint: Some("give the folder it lies in, or a GGUF file".to_owned()),
        })?;
        Ok(Self { config, checkpoint })
    }

    /// Returns the model's `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Returns its weights, under the names of its family.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Returns the metadata of a GGUF file, including its tokenizer; `None` for a folder.
    #[must_use]
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.checkpoint.gguf_metadata()
    }
}
