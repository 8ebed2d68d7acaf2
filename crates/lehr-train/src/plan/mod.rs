//! Recipes fitted to data and machine, for runs without a recipe file. `docs/recipes.md` lists the
//! fitted values. Each number is a constant here, with the experiment or paper behind it.

mod budget;
mod finetune;
mod fixed;
mod ladder;
mod law;
mod measured;
mod prediction;
mod pretrain;
mod rates;
mod reading;

use std::path::Path;

use lehr_data::{Part, ReadOptions, Reading};

pub use budget::{Budget, device_gflops, machine_gflops, product_gflops};
pub use finetune::{Finetuning, fit_finetune};
pub use fixed::Fixed;
pub use ladder::{model_of_depth, sizes_of_depth};
pub use law::{FinishedRun, LossLaw};
pub use measured::{Measured, measure_step};
pub use prediction::Prediction;
pub use pretrain::fit_pretrain;
pub use rates::muon_for_width;

use crate::Recipe;
use crate::recipe::{DataConfig, RunConfig};

/// A fitted recipe with its reasons.
pub struct Fitted {
    /// The recipe.
    pub recipe: Recipe,
    /// The reasons, one sentence per choice.
    pub reasons: Vec<String>,
    /// What is predicted of the run.
    pub prediction: Prediction,
    /// What a few steps of the model showed, if they were made.
    pub measured: Option<Measured>,
    /// What the reader of the data has to say: files, unused fields, bad records.
    pub notes: Vec<String>,
}

fn run_config(base: &Recipe, out: &Path, seed: u64) -> RunConfig {
    RunConfig { dir: out.display().to_string(), seed, ..base.run.clone() }
}

/// The data to fit a recipe to.
#[derive(Clone, Copy, Debug)]
pub struct FitData<'a> {
    /// File or folder.
    pub path: &'a Path,
    /// Whether bad records are left out and counted.
    pub skip_bad: bool,
}

impl FitData<'_> {
    fn reading(&self) -> Reading {
        Reading::new(Part::Train, self.skip_bad)
    }

    fn config(&self, base: &Recipe, validation_fraction: f64) -> DataConfig {
        let Self { path, skip_bad } = *self;
        let path = path.display().to_string();
        DataConfig { path, validation_fraction, skip_bad, ..base.data.clone() }
    }
}

impl Fixed {
    /// Returns how the documents of the run are read. `reading` hears what there is to say of them.
    fn read_options(&self, reading: Reading) -> ReadOptions {
        let ReadOptions { text_field, document_bytes, .. } = ReadOptions::default();
        ReadOptions {
            text_field: self.text("data.text_field").map_or(text_field, str::to_owned),
            document_bytes: match self.has("data.document_bytes") {
                true => self.count("data.document_bytes").unwrap_or(0),
                false => document_bytes,
            },
            reading,
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
