//! The counters of a run, and what it was made from.

use serde::{Deserialize, Serialize};

use crate::{Inputs, LossScale, WatchdogState};

/// The state that a resume needs besides weights and moments. Loaders, schedules and samples are
/// pure functions of the step, so these counters suffice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Number of finished optimiser steps.
    pub step: u64,
    /// Number of targets trained on: supervised tokens, or texts.
    pub targets_seen: u64,
    /// Number of tokens that went through the model.
    pub tokens_seen: u64,
    /// Seconds spent, over all sessions.
    pub elapsed_s: f64,
    /// Loss scaling of a run in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Number of parameters that already have the update of the next step. It is 0 in checkpoints,
    /// and positive only in the debug state of a step that failed with `optimizer.in_backward`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub params_ahead: usize,
    /// Last losses, skips and rollbacks.
    #[serde(default, skip_serializing_if = "WatchdogState::is_new")]
    pub watchdog: WatchdogState,
    /// The inputs of the run; `None` in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Inputs>,
}

impl TrainState {
    /// Returns the number of steps made, with those that rollbacks undid. Batches are counted so.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.step + self.watchdog.n_undone
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}
