//! Recipes fitted to data and machine, for runs without a recipe file. `docs/recipes.md` lists what
//! comes out.

mod budget;
mod finetune;
mod ladder;
mod pretrain;

use std::path::Path;

pub use budget::{Budget, device_gflops, machine_gflops};
pub use finetune::fit_finetune;
pub use pretrain::fit_pretrain;

use crate::Recipe;
use crate::recipe::{DataConfig, RunConfig};

/// A recipe and why it is as it is.
pub struct Fitted {
    /// The recipe.
    pub recipe: Recipe,
    /// One sentence per choice.
    pub reasons: Vec<String>,
}

fn run_config(base: &Recipe, out: &Path, seed: u64) -> RunConfig {
    RunConfig { dir: out.display().to_string(), seed, ..base.run.clone() }
}

fn data_config(base: &Recipe, path: &Path, validation_fraction: f64) -> DataConfig {
    DataConfig { path: path.display().to_string(), validation_fraction, ..base.data.clone() }
}

/// Characters of a prompt that is taken from a text.
const PROMPT_CHARS: usize = 24;

/// The first few words of a text, as a prompt.
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
