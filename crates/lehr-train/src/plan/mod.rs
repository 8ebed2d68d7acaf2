//! Recipes fitted to data and machine, for runs without a recipe file. `docs/recipes.md` lists the
//! fitted values. Each number is a constant here, with the experiment or paper behind it.

mod budget;
mod finetune;
mod fixed;
mod ladder;
mod pretrain;

use std::path::Path;

use lehr_data::ReadOptions;

pub use budget::{Budget, device_gflops, machine_gflops};
pub use finetune::{Finetuning, fit_finetune};
pub use fixed::Fixed;
pub use pretrain::fit_pretrain;

use crate::Recipe;
use crate::recipe::{DataConfig, RunConfig};

/// A fitted recipe with its reasons.
pub struct Fitted {
    /// The recipe.
    pub recipe: Recipe,
    /// The reasons, one sentence per choice.
    pub reasons: Vec<String>,
}

fn run_config(base: &Recipe, out: &Path, seed: u64) -> RunConfig {
    RunConfig { dir: out.display().to_string(), seed, ..base.run.clone() }
}

fn data_config(base: &Recipe, path: &Path, validation_fraction: f64) -> DataConfig {
    DataConfig { path: path.display().to_string(), validation_fraction, ..base.data.clone() }
}

impl Fixed {
    /// Returns how the documents of the run are read.
    fn read_options(&self) -> ReadOptions {
        let ReadOptions { text_field, document_bytes, .. } = ReadOptions::default();
        ReadOptions {
            text_field: self.text("data.text_field").map_or(text_field, str::to_owned),
            document_bytes: match self.has("data.document_bytes") {
                true => self.count("data.document_bytes").unwrap_or(0),
                false => document_bytes,
            },
        }
    }
}

/// Maximum number of characters of a prompt taken from a text.
const PROMPT_CHARS: usize = 24;

/// Returns the first few words of a text, as a prompt.
fn first_words(text: &str) -> String {
    let line = text.trim_start().lines().next().unwrap_or("");
    let mut prompt: String = line.chars().take(PROMPT_CHARS).collect();
    if prompt.chars().count() == PROMPT_CHARS
        && let Some(end) = prompt.rfind(' ')
    {
        prompt.truncate(end);
    }
    prompt
}
