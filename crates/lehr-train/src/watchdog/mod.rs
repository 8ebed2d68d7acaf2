//! The watchdog of a run: finds loss spikes and steps that are not finite.
//!
//! Its decisions depend on losses alone, never on the clock. So a run stays a pure function of its
//! recipe, and a resumed run decides as an uninterrupted one. Only [`stall`] has a clock, and a
//! stall is only reported.

pub(crate) mod stall;

use std::collections::VecDeque;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::recipe::{WatchdogAction, WatchdogConfig};
use crate::{Error, Result, StepNumbers};

/// Smallest median absolute deviation, in nats. Losses of a fitted model hardly vary, and then any
/// other loss would be a spike.
const DEVIATION_MIN: i64 = 50_000;
/// Losses are kept in millionths of a nat: whole numbers, which JSON stores exactly.
const UNITS: f64 = 1e6;

/// The part of a run's state that belongs to the watchdog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchdogState {
    /// Losses of the last steps, oldest first, in millionths of a nat.
    pub recent: VecDeque<i64>,
    /// Number of steps whose update was dropped.
    pub n_skipped: u64,
    /// Number of steps that rollbacks undid. Their batches are passed over.
    pub n_undone: u64,
    /// Spikes, skips or rollbacks in a row.
    pub in_row: u32,
}

impl WatchdogState {
    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }
}

/// An event of the watchdog, one line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchdogEvent {
    /// Number of the step, from 1; for a stall, the number of steps made.
    pub step: u64,
    /// The same number if steps that a rollback undid are counted too. It orders the events.
    pub attempt: u64,
    /// What was done.
    pub event: WatchdogKind,
    /// What was found.
    pub reason: String,
    /// The loss, if it is finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The number of steps of the checkpoint that a rollback returned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_step: Option<u64>,
}

/// What the watchdog did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogKind {
    /// A spike was only reported. The first of several in a row is.
    Spike,
    /// The update of a step was dropped.
    Skipped,
    /// The run returned to a checkpoint.
    RolledBack,
    /// There was no progress for a time.
    Stalled,
}

impl WatchdogEvent {
    /// Says what happened, as in "step 7 skipped: the loss 9 is above …".
    #[must_use]
    pub fn text(&self) -> String {
        let Self { step, reason, .. } = self;
        match (self.event, self.to_step) {
            (WatchdogKind::Spike, _) => format!("step {step}: {reason}"),
            (WatchdogKind::Skipped, _) => format!("step {step} skipped: {reason}"),
            (WatchdogKind::Stalled, _) => format!("after step {step}: {reason}"),
            (WatchdogKind::RolledBack, to) => {
                format!("step {step} rolled back to step {}: {reason}", to.unwrap_or(0))
            }
        }
    }
}

/// Reads the events of the watchdog from a metrics file.
///
/// # Errors
/// If the file cannot be read.
pub fn read_watchdog_events(path: &Path) -> Result<Vec<WatchdogEvent>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("reading", path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The limit above which a loss is a spike, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Limit {
    loss: f64,
    median: f64,
    n_losses: usize,
}

/// The decision about a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong, or it has been reported.
    Go,
    /// The step is reported and counts.
    Report(String),
    /// The step counts without its update.
    Skip(String),
    /// The run returns to its last checkpoint by schedule.
    RollBack(String),
    /// The run ends with an error.
    Stop(String),
}

/// The rule of a recipe.
#[derive(Clone, Copy)]
pub(crate) struct Watchdog(pub(crate) WatchdogConfig);

impl Watchdog {
    /// Returns the loss above which a step must not update weights; `None` if each may.
    pub(crate) fn update_limit(self, state: &WatchdogState) -> Option<f64> {
        match self.0.action {
            WatchdogAction::Skip => self.limit(state).map(|limit| limit.loss),
            _ => None,
        }
    }

    /// Computes the limit from the last losses: their median plus a multiple of their median
    /// absolute deviation. Neither moves much by a few spikes among them.
    fn limit(self, state: &WatchdogState) -> Option<Limit> {
        let n_losses = state.recent.len();
        if self.0.action == WatchdogAction::Off || n_losses < self.0.window / 2 {
            return None;
        }
        let median = median(state.recent.iter().copied());
        let distance = |loss: &i64| loss.saturating_sub(median).saturating_abs();
        let deviation = self::median(state.recent.iter().map(distance));
        let loss = median as f64 + self.0.threshold * deviation.max(DEVIATION_MIN) as f64;
        Some(Limit { loss: loss / UNITS, median: median as f64 / UNITS, n_losses })
    }

    /// Decides about a step and records its loss.
    pub(crate) fn judge(
        self,
        state: &mut WatchdogState,
        numbers: &StepNumbers,
        is_finite: bool,
    ) -> Verdict {
        use WatchdogAction::{Off, Rollback, Skip, Warn};
        let action = self.0.action;
        let reason = match is_finite {
            true => self.spike(state, numbers.loss),
            false if !numbers.loss.is_finite() => Some(format!("the loss is {}", numbers.loss)),
            false => Some(format!("the norm of the gradient is {}", numbers.grad_norm)),
        };
        let Some(reason) = reason else {
            // A rollback is over once the next checkpoint is reached.
            if action != Rollback {
                state.in_row = 0;
            }
            self.record(state, numbers.loss);
            return Verdict::Go;
        };
        match action {
            Off => Verdict::Stop(reason),
            Warn if !is_finite => Verdict::Stop(reason),
            Warn => {
                // Recorded, so that a lasting change becomes the usual.
                self.record(state, numbers.loss);
                state.in_row = state.in_row.saturating_add(1);
                if state.in_row == 1 { Verdict::Report(reason) } else { Verdict::Go }
            }
            Skip | Rollback if state.in_row >= self.0.in_row_max => Verdict::Stop(reason),
            Skip => {
                state.in_row += 1;
                state.n_skipped += 1;
                Verdict::Skip(reason)
            }
            Rollback => Verdict::RollBack(reason),
        }
    }

    /// Returns the reason if a finite loss is a spike.
    fn spike(self, state: &WatchdogState, loss: f64) -> Option<String> {
        let limit = self.limit(state).filter(|limit| loss > limit.loss)?;
        Some(format!(
            "the loss {loss:.4} is above {:.4}; the median of the last {} steps is {:.4}",
            limit.loss, limit.n_losses, limit.median
        ))
    }

    fn record(self, state: &mut WatchdogState, loss: f64) {
        if self.0.action == WatchdogAction::Off {
            return;
        }
        state.recent.push_back((loss * UNITS).round() as i64);
        while state.recent.len() > self.0.window {
            state.recent.pop_front();
        }
    }
}

/// The lower of the two middle values, if there are two.
fn median(values: impl Iterator<Item = i64>) -> i64 {
    let mut values: Vec<i64> = values.collect();
    let middle = values.len().saturating_sub(1) / 2;
    match values.get(middle) {
        Some(_) => *values.select_nth_unstable(middle).1,
        None => 0,
    }
}

#[cfg(test)]
mod tests;
