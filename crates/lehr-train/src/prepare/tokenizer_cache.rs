//! The cache of a trained tokenizer: `tokenizer.json`, and what it was trained on.

use std::path::{Path, PathBuf};

use lehr_model::io::{hash_file, hex, read_json};
use lehr_tokenizer::Tokenizer;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Notes;
use crate::Result;
use crate::checkpoint::{Storage, create_dir, replace_file};
use crate::recipe::TokenizerConfig;

/// Version of the trainer and of the sample it is given. It changes when the same settings give
/// another tokenizer.
const TRAINER_VERSION: &str = "2";

/// The name of the tokenizer in the cache.
pub(crate) const CACHED_TOKENIZER: &str = "tokenizer.json";

/// The place of a trained tokenizer in a cache.
pub(super) struct CachedTokenizer {
    folder: PathBuf,
    /// Hash of the texts and settings of its training.
    key: String,
}

impl CachedTokenizer {
    /// Returns the place of the tokenizer trained with these settings on texts of the hash `texts`.
    pub(super) fn new(folder: &Path, config: &TokenizerConfig, texts: &str) -> Self {
        let hash = Sha256::new_with_prefix(format!("{TRAINER_VERSION} {config:?}\n{texts}"));
        Self { folder: folder.to_owned(), key: hex(&hash.finalize()) }
    }

    /// Opens the tokenizer, if it is there, whole, and trained on the same texts with the same
    /// settings.
    pub(super) fn open(&self, notes: Notes<'_>) -> Result<Option<Tokenizer>> {
        let Ok(origin) = read_json(&self.origin()) else { return Ok(None) };
        if origin["trained_on"] != self.key.as_str() {
            return Ok(None);
        }
        let path = self.folder.join(CACHED_TOKENIZER);
        if hash_file(&path).is_ok_and(|hash| origin["sha256"] == hash.as_str()) {
            return Ok(Some(Tokenizer::from_file(&path)?));
        }
        notes(&format!(
            "{} is damaged or was changed: the tokenizer is trained again",
            path.display()
        ));
        Ok(None)
    }

    /// Keeps a trained tokenizer. Its origin is written last: without it the tokenizer is not used.
    pub(super) fn keep(&self, tokenizer: &Tokenizer, storage: &mut dyn Storage) -> Result<()> {
        create_dir(storage, &self.folder)?;
        let text = tokenizer.to_json();
        replace_file(storage, &self.folder.join(CACHED_TOKENIZER), text.as_bytes())?;
        let sha256 = hex(&Sha256::digest(text.as_bytes()));
        let origin = json!({ "trained_on": self.key, "sha256": sha256 });
        replace_file(storage, &self.origin(), format!("{origin:#}\n").as_bytes())
    }

    fn origin(&self) -> PathBuf {
        self.folder.join("tokenizer_origin.json")
    }
}
