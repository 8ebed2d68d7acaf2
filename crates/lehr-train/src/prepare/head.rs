//! Loaded models that already have a head for the task of the run.

use std::path::{Path, PathBuf};

use lehr_infer::{check_vocabulary, resolve_model};
use lehr_model::Model;
use lehr_model::io::ModelSource;
use lehr_tokenizer::Tokenizer;

use super::model;
use crate::recipe::ModelConfig;
use crate::{Error, Recipe, Result};

/// A loaded model with a head for the task of the run.
pub(super) struct Headed {
    /// Its folder.
    pub(super) dir: PathBuf,
}

impl Headed {
    /// Finds the loaded model if `is_headed` says that its folder has such a head. An adapter
    /// starts from a model without one.
    ///
    /// # Errors
    /// If the model is not found, or it has the head and the recipe an adapter.
    pub(super) fn find(recipe: &Recipe, is_headed: fn(&Path) -> bool) -> Result<Option<Self>> {
        let ModelConfig::Load { path } = &recipe.model else { return Ok(None) };
        let dir = resolve_model(Path::new(path))?;
        if !is_headed(&dir) {
            return Ok(None);
        }
        if !recipe.adapter.is_none() {
            let faults = format!(
                "adapter.kind is {}, expected none: the model has the head of this task already; \
                 an adapter starts from the model that it was made of",
                recipe.adapter.kind()
            );
            return Err(Error::Setting { faults });
        }
        Ok(Some(Self { dir }))
    }

    /// Warns of a vocabulary that the tokenizer does not fit.
    pub(super) fn check(&self, model: &mut Model, tokenizer: &Tokenizer) -> Result<()> {
        if let Some(warning) = check_vocabulary(&self.dir, tokenizer, model)? {
            model.warn(warning);
        }
        Ok(())
    }

    /// Opens the model without its head, for a new one.
    pub(super) fn backbone(&self, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Model> {
        let mut model = Model::load_source(&ModelSource::open(&self.dir)?)?;
        self.check(&mut model, tokenizer)?;
        model::set_up(recipe, &mut model);
        Ok(model)
    }
}
