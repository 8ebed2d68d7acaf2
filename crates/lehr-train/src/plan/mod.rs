//! Recipes fitted to data and machine, for runs without a recipe file. `docs/recipes.md` lists the
//! fitted values. Each number is a constant here, with the experiment or paper behind it.

mod budget;
mod finetune;
mod ladder;
mod pretrain;
mod reading;

use std::path::Path;

pub use budget::{Budget, device_gflops, machine_gflops};
pub use finetune::fit_finetune;
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
