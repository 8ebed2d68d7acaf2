//! `[average]`

use serde::{Deserialize, Serialize};

use super::{Faults, Recipe};

/// `[average]`: the weights that are evaluated, sampled from and saved. Training always continues
/// with the weights of the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AverageConfig {
    /// Those of the last step.
    #[default]
    None,
    /// An exponential moving average.
    Ema {
        /// Share of the average that a step keeps.
        decay: f32,
        /// The first step whose weights count, from 1. Until then those of the last step are used.
        start_step: u64,
    },
    /// The mean of weights at the end of the run.
    Tail {
        /// Steps of the end of the run from which weights are taken.
        steps: u64,
        /// Steps between two of them; the last are those of the last step.
        every_steps: u64,
    },
}

impl AverageConfig {
    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let all = recipe.train.steps;
        match *self {
            Self::None => {}
            Self::Ema { decay, start_step } => {
                let expected = "0 or more, below 1";
                faults.check((0.0..1.0).contains(&decay), "average.decay", &decay, expected);
                let good = (1..=all).contains(&start_step);
                faults.check(good, "average.start_step", &start_step, "1 to train.steps");
            }
            Self::Tail { steps, every_steps } => {
                let good = (1..=all).contains(&steps);
                faults.check(good, "average.steps", &steps, "1 to train.steps");
                let good = (1..=steps.max(1)).contains(&every_steps);
                faults.check(good, "average.every_steps", &every_steps, "1 to average.steps");
            }
        }
    }
}
