//! Recipes: one strict TOML file with the settings of a run.
//!
//! A new key is a field of its section, which is also where it is documented and checked, and a
//! line in `base.toml`, which every other recipe extends: fitted ones, files, tests, benchmarks.

mod adapter;
mod average;
mod groups;
mod merge;
mod model;
mod optimizer;
mod renamed;
mod sections;
mod stages;
mod watchdog;

use std::path::{Path, PathBuf};

pub use adapter::{AdapterSection, LowRank};
pub use average::AverageConfig;
pub use groups::{GroupChange, GroupConfig, MuonConfig};
pub(crate) use model::positive;
pub use model::{
    ClassifierPooling, LehrModel, ModelConfig, NanochatModel, ObjectiveKind, TokenizerConfig,
};
pub use optimizer::{AdamwConfig, DecayShape, OptimizerConfig, OptimizerRule, ScheduleConfig};
pub use renamed::current_names;
pub use sections::{
    CheckpointConfig, DataConfig, EvalConfig, RunConfig, SampleConfig, SavedWeights, Shuffle,
    TrainConfig,
};
use serde::{Deserialize, Serialize};
pub use stages::{BatchLr, BatchStage, SeqStage};
pub use watchdog::{WatchdogAction, WatchdogConfig};

use crate::{Error, Result};

/// All settings of a run. The file saved with a run names every one of them and can be run again as
/// it is. Other files may leave out keys whose value in `base.toml` they accept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Directory, seed and device.
    pub run: RunConfig,
    /// Training and held-out data.
    pub data: DataConfig,
    /// The tokenizer.
    pub tokenizer: TokenizerConfig,
    /// The model.
    pub model: ModelConfig,
    /// What is trained beside the model. Recipes of older runs lack it.
    #[serde(default)]
    pub adapter: AdapterSection,
    /// The training objective.
    pub objective: ObjectiveKind,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The learning-rate schedule.
    pub schedule: ScheduleConfig,
    /// Number of steps, and the size of a step.
    pub train: TrainConfig,
    /// Averages of weights. Recipes of older runs lack them.
    #[serde(default)]
    pub average: AverageConfig,
    /// Evaluation on held-out data.
    pub eval: EvalConfig,
    /// Generated samples.
    pub sample: SampleConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Loss spikes and stalls.
    pub watchdog: WatchdogConfig,
}

impl Recipe {
    /// Reads a recipe file with `key=value` overrides applied.
    ///
    /// # Errors
    /// If the file is missing, not TOML, has unknown or missing keys or impossible values.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("reading the recipe", path))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Reads the recipe of an existing run. One of an earlier version keeps its meaning: a key that
    /// it lacks has the value that every run had before there was the key.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub(crate) fn of_run(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("reading the recipe", path))?;
        let origin = path.display().to_string();
        let has = |key: &str| {
            let table: Option<toml::Table> = toml::from_str(&text).ok();
            table.is_none_or(|t| t.get("data").is_none_or(|data| data.get(key).is_some()))
        };
        let old = DataConfig::OLD_RUNS.iter().filter(|(key, _)| !has(key));
        let sets: Vec<_> = old.map(|(key, value)| format!("data.{key}={value}")).collect();
        Self::parse(&text, &origin, &sets)
    }

    /// Reads a recipe from text; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let fault =
            |reason: String, hint| Error::Recipe { origin: origin.to_owned(), reason, hint };
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| fault(e.to_string().trim_end().to_owned(), None))?;
        for item in overrides {
            merge::set(&mut table, item)
                .map_err(|reason| fault(reason, Some(merge::HINT.to_owned())))?;
        }
        merge::replace_optimizer(&mut table, text, overrides);
        if let Some((reason, hint)) = renamed::find(&table) {
            return Err(fault(reason, Some(hint)));
        }
        let mut extended = false;
        let recipe: Self = loop {
            // Back to text, so that an error shows the line with the override in it.
            let resolved = toml::to_string(&table).map_err(|e| fault(e.to_string(), None))?;
            let as_given = overrides.is_empty() && !extended;
            match toml::from_str(if as_given { text } else { &resolved }) {
                Ok(recipe) => break recipe,
                Err(e) if !extended && e.message().starts_with("missing field") => {
                    merge::extend(&mut table, base_table());
                    extended = true;
                }
                Err(e) if merge::drop_stale(&mut table, e.message(), overrides) => {}
                Err(e) => {
                    let hint = merge::suggestion(e.message());
                    return Err(fault(e.to_string().trim_end().to_owned(), hint));
                }
            }
        };
        if let Some(reason) = merge::unused(&table, &recipe.to_toml(), overrides) {
            return Err(fault(reason, None));
        }
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe that all others extend. Paths are empty, so it is not valid as it is.
    ///
    /// # Panics
    /// Never: a test reads the same text.
    #[must_use]
    pub fn base() -> Self {
        base_table().try_into().expect("base.toml is a recipe")
    }

    /// The same recipe with overrides applied.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn with_overrides(&self, overrides: &[String]) -> Result<Self> {
        Self::parse(&self.to_toml(), "(built in)", overrides)
    }

    /// The recipe as a TOML file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds tables, numbers and text only")
    }

    /// Lists the settings in which `other` differs from this recipe.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        merge::differences(&self.to_toml(), &other.to_toml())
    }

    /// The run directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        PathBuf::from(&self.run.dir)
    }

    /// Checks all settings; every fault is reported.
    ///
    /// # Errors
    /// If there is a fault.
    pub fn validate(&self) -> Result<()> {
        let mut faults = Faults(Vec::new());
        self.run.validate(&mut faults);
        self.data.validate(self, &mut faults);
        self.tokenizer.validate(self, &mut faults);
        self.model.validate(self, &mut faults);
        self.adapter.validate(self, &mut faults);
        self.optimizer.validate(self, &mut faults);
        self.schedule.validate(self, &mut faults);
        self.train.validate(self, &mut faults);
        self.average.validate(self, &mut faults);
        self.sample.validate(&mut faults);
        self.checkpoint.validate(self, &mut faults);
        self.watchdog.validate(self, &mut faults);
        if faults.0.is_empty() {
            return Ok(());
        }
        Err(Error::Setting { faults: faults.0.join("\n        ") })
    }
}

fn base_table() -> toml::Table {
    toml::from_str(include_str!("base.toml")).expect("base.toml is TOML")
}

/// Reads `key=value` overrides into a table without a recipe.
///
/// # Errors
/// If one is not of the form `section.key=value`.
pub(crate) fn table_of(overrides: &[String]) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    for item in overrides {
        merge::set(&mut table, item).map_err(|reason| Error::Recipe {
            origin: "(built in)".to_owned(),
            reason,
            hint: Some(merge::HINT.to_owned()),
        })?;
    }
    Ok(table)
}

/// The impossible settings found so far.
struct Faults(Vec<String>);

impl Faults {
    /// Adds a fault if the value of `key` is not `good`.
    fn check(&mut self, good: bool, key: &str, found: &dyn std::fmt::Display, expected: &str) {
        if !good {
            self.0.push(format!("{key} is {found}, expected {expected}"));
        }
    }
}

#[cfg(test)]
mod tests;
