//! The optimiser of a pre-training run with its rates, its schedule and the tokens of a step.

use super::Fixed;
use crate::recipe::{DecayShape, OptimizerConfig, ScheduleConfig};

/// Tokens per step for runs below a number of tokens; the first matching entry counts. Short runs
/// take small batches: more steps help them more than smoother gradients.
type StepTokens = [(f64, usize); 4];
/// With AdamW.
const ADAMW_STEP_TOKENS: StepTokens = [(5e6, 512), (5e7, 4096), (5e7, 4096), (f64::INFINITY, 8192)];
/// With Muon, whose direction is worth more per step and costs more.
const MUON_STEP_TOKENS: StepTokens = [(4e5, 1024), (5e6, 2048), (5e7, 4096), (f64::INFINITY, 8192)];
/// Maximum number of passes over the text with AdamW. Up to four passes are nearly as good as new
/// text; after about sixteen, more passes help little (Muennighoff et al. 2023).
const ADAMW_PASSES_MAX: f64 = 8.0;
/// The same with Muon, which learns a text by heart sooner: after about three passes held-out loss
/// falls no more, although the head decays ("several passes" in docs/experiments.md).
const MUON_PASSES_MAX: f64 = 3.0;

/// Learning rate of matrices with Muon ("rates of Muon" in docs/experiments.md).
const MUON_LR: f32 = 0.02;
/// Matrices move every second step: it halves the cost of Muon, which is large in small batches.
const MUON_EVERY: u64 = 2;
/// Learning rates of embeddings and head times the root of the width.
const EMBEDDINGS_LR: f64 = 1.6;
const HEAD_LR: f64 = 0.128;
/// Learning rate of scalars.
const SCALARS_LR: f32 = 0.01;
/// Shares of the steps with a rising and with a falling rate.
const MUON_WARMUP: f64 = 0.02;
const MUON_DECAY: f64 = 0.6;

/// Passes over the text up to which head and embeddings decay as usual, and from which they decay
/// in full. In repeated text they learn it by heart ("several passes" in docs/experiments.md).
const DECAY_PASSES: (f64, f64) = (1.0, 3.0);
/// In full, the head forgets within this share of a pass: its rate times its decay times the steps
/// of a pass is one over it.
const FORGETTING: f64 = 0.16;
/// Decay of the embeddings as a share of the head's. Their rate is 12 times as large.
const EMBEDDINGS_DECAY: f64 = 0.05;

/// Learning rate of AdamW times width. The best rate falls with the width ("learning rates of the
/// tiny quickstart model" in docs/experiments.md: 4e-4 at a width of 192).
const ADAMW_LR_TIMES_WIDTH: f64 = 0.08;
const ADAMW_LR_MAX: f64 = 1e-3;
/// Learning rate of embeddings as a multiple of AdamW's (same section): each row is used by few
/// tokens of a batch.
const EMBEDDING_LR_RATIO: f32 = 15.0;
/// A twentieth of the steps are warm-up.
const WARMUP_PART: u64 = 20;
/// Share of the peak rate at the end.
const LR_MIN_RATIO: f32 = 0.05;

/// The optimiser of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For models that continue, and on request.
    Adamw,
    /// For new models.
    Muon,
}

impl Kind {
    pub(super) fn of(fixed: &Fixed) -> Self {
        match fixed.text("optimizer.kind") {
            Some("adamw") => Self::Adamw,
            Some(_) => Self::Muon,
            None if fixed.text("model.kind") == Some("load") => Self::Adamw,
            None => Self::Muon,
        }
    }

    /// Returns how often the text is read at most.
    pub(super) fn passes_max(self) -> f64 {
        match self {
            Self::Adamw => ADAMW_PASSES_MAX,
            Self::Muon => MUON_PASSES_MAX,
        }
    }

    pub(super) fn step_tokens(self, tokens: f64) -> usize {
        let table = match self {
            Self::Adamw => ADAMW_STEP_TOKENS,
            Self::Muon => MUON_STEP_TOKENS,
        };
        table.iter().find(|(below, _)| tokens < *below).map_or(table[3].1, |(_, n)| *n)
    }

    /// Returns the settings for a model of this width that reads a text of so many steps so often.
    pub(super) fn settings(
        self,
        width: usize,
        (passes, steps_per_pass): (f64, f64),
        base: &OptimizerConfig,
    ) -> OptimizerConfig {
        match self {
            Self::Adamw => {
                let lr = (ADAMW_LR_TIMES_WIDTH / width as f64).min(ADAMW_LR_MAX) as f32;
                OptimizerConfig { lr, ..*base }
                    .with_adamw(|a| a.embedding_lr_ratio = EMBEDDING_LR_RATIO)
            }
            Self::Muon => muon_for_width(width).with_muon(|muon| {
                let (none, full) = DECAY_PASSES;
                let share = ((passes - none) / (full - none)).clamp(0.0, 1.0);
                let rate = f64::from(muon.head.lr);
                let decay = share / (rate * FORGETTING * steps_per_pass.max(1.0));
                let least = |decay: f64, usual: f32| usual.max(two_digits(decay) as f32);
                muon.head.weight_decay = least(decay, muon.head.weight_decay);
                let embeddings = EMBEDDINGS_DECAY * decay;
                muon.embeddings.weight_decay = least(embeddings, muon.embeddings.weight_decay);
            }),
        }
    }

    /// Returns the schedule of so many steps.
    pub(super) fn schedule(self, steps: u64) -> ScheduleConfig {
        let part = |share: f64| (steps as f64 * share) as u64;
        match self {
            Self::Adamw => ScheduleConfig::Cosine {
                warmup_steps: (steps / WARMUP_PART).max(1),
                min_ratio: LR_MIN_RATIO,
            },
            Self::Muon => ScheduleConfig::Wsd {
                warmup_steps: part(MUON_WARMUP).max(1),
                decay_steps: part(MUON_DECAY),
                min_ratio: LR_MIN_RATIO,
                decay_shape: DecayShape::Linear,
            },
        }
    }
}

/// Rounds to two digits, which are all that a recipe needs.
fn two_digits(value: f64) -> f64 {
    let unit = 10f64.powi(value.max(1e-9).log10().floor() as i32 - 1);
    (value / unit).round() * unit
}

/// Returns Muon with the rates for a new model of this width.
#[must_use]
pub fn muon_for_width(width: usize) -> OptimizerConfig {
    let root = (width as f64).sqrt();
    OptimizerConfig::muon(MUON_LR).with_muon(|muon| {
        muon.every = MUON_EVERY;
        // Without a first moment a row moves as far in the one step that uses it as with one.
        (muon.lazy_embeddings, muon.embeddings.beta1) = (true, 0.0);
        muon.embeddings.lr = (EMBEDDINGS_LR / root) as f32;
        muon.head.lr = (HEAD_LR / root) as f32;
        muon.others.lr = SCALARS_LR;
    })
}
