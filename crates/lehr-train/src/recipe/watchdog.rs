//! `[watchdog]`

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Faults, Recipe};

/// `[watchdog]`: loss spikes, steps that are not finite, and stalls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchdogConfig {
    /// The answer to a loss spike, and to a loss or gradient that is not finite.
    pub action: WatchdogAction,
    /// Number of last steps whose losses define what is usual. Spikes are looked for after half of
    /// them.
    pub window: usize,
    /// Distance between a spike and the median of these losses, in median absolute deviations.
    pub threshold: f64,
    /// Number of skips or rollbacks in a row; one more ends the run with an error.
    pub in_row_max: u32,
    /// Seconds without progress until a warning; 0 = never. Changes no result.
    pub stall_seconds: u64,
}

/// The answer to a loss spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// Nothing is looked for. A step that is not finite ends the run.
    Off,
    /// A spike is reported. A step that is not finite ends the run.
    Warn,
    /// The update of the step is dropped.
    Skip,
    /// The run returns to its last checkpoint by schedule and passes over the batches since.
    Rollback,
}

impl fmt::Display for WatchdogAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Skip => "skip",
            Self::Rollback => "rollback",
        })
    }
}

impl WatchdogConfig {
    /// Smallest window: a median of fewer losses says little.
    const WINDOW_MIN: usize = 8;
    /// Largest window: the losses are part of each checkpoint's `state.json`.
    const WINDOW_MAX: usize = 4096;

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let Self { action, window, threshold, in_row_max, .. } = *self;
        let good = (Self::WINDOW_MIN..=Self::WINDOW_MAX).contains(&window);
        faults.check(good, "watchdog.window", &window, "8 to 4096");
        let good = threshold.is_finite() && threshold > 0.0;
        faults.check(good, "watchdog.threshold", &threshold, "more than 0");
        faults.check(in_row_max > 0, "watchdog.in_row_max", &in_row_max, "at least 1");
        // Both would update weights before the host knows the loss.
        let updates_early = recipe.optimizer.in_backward || recipe.train.cuda_graph;
        let good = action != WatchdogAction::Skip || !updates_early;
        let expected = "another action, or optimizer.in_backward and train.cuda_graph = false";
        faults.check(good, "watchdog.action", &action, expected);
        let good = action != WatchdogAction::Rollback || recipe.checkpoint.every_steps > 0;
        let expected = "another action, or checkpoint.every_steps of at least 1";
        faults.check(good, "watchdog.action", &action, expected);
    }
}
