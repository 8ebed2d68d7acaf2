//! Where a run stands.

use serde::{Deserialize, Serialize};

use crate::LossScale;

/// Everything a resume needs besides weights and moments. Loaders, schedules and samples are pure
/// functions of the step, so little is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Optimiser steps made.
    pub step: u64,
    /// Targets learnt from: supervised tokens, or texts.
    pub targets_seen: u64,
    /// Tokens that went through the model.
    pub tokens_seen: u64,
    /// Seconds spent, over all sessions.
    pub elapsed_s: f64,
    /// For a run in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}
