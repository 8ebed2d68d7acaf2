//! Parts of a run with steps of other sizes.

use serde::{Deserialize, Serialize};

use super::{Faults, ObjectiveKind, Recipe};
use crate::schedule::Stages;

/// A part of the run, and the tokens of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchStage {
    /// Share of the run's steps.
    pub share: f64,
    /// Tokens of a step.
    pub tokens: usize,
}

/// A part of the run, and the tokens of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeqStage {
    /// Share of the run's steps.
    pub share: f64,
    /// Tokens of a row.
    pub seq_len: usize,
}

/// How the learning rate follows the tokens of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchLr {
    /// It does not.
    #[default]
    None,
    /// It is multiplied by the root of a step's tokens, relative to the last stage.
    Sqrt,
}

/// Shares add up to 1 within this.
const SHARES_TOLERANCE: f64 = 1e-6;

/// Checks `train.batch_stages`, `train.seq_stages` and `train.batch_lr`.
pub(super) fn check_stages(recipe: &Recipe, faults: &mut Faults) {
    let train = &recipe.train;
    let uses_sqrt = train.batch_lr == BatchLr::Sqrt;
    let expected = "none, because train.batch_stages is empty";
    faults.check(
        !(uses_sqrt && train.batch_stages.is_empty()),
        "train.batch_lr",
        &"sqrt",
        expected,
    );
    let n = faults.0.len();
    let shares = |shares: Vec<f64>, key, faults: &mut Faults| {
        let sum: f64 = shares.iter().sum();
        let good = shares.iter().all(|share| *share > 0.0) && (sum - 1.0).abs() < SHARES_TOLERANCE;
        let found = format!("a list of shares {shares:?}");
        faults.check(shares.is_empty() || good, key, &found, "shares above 0 whose sum is 1");
    };
    shares(train.batch_stages.iter().map(|s| s.share).collect(), "train.batch_stages", faults);
    shares(train.seq_stages.iter().map(|s| s.share).collect(), "train.seq_stages", faults);
    check_lengths(recipe, faults);
    check_tokens(recipe, faults);
    // What follows cannot be computed from impossible settings.
    let sizes = [train.batch_size, train.seq_len, train.steps as usize];
    if faults.0.len() > n || sizes.contains(&0) || train.grad_accumulation == 0 {
        return;
    }
    let stages = Stages::new(train);
    let expected = "enough for a step in each stage";
    faults.check(!Stages::lacks_steps(train), "train.steps", &train.steps, expected);
    for (tokens, seq_len) in stages.sizes() {
        let expected = format!("a multiple of {seq_len}, the tokens of a row in that stage");
        let good = tokens > 0 && tokens.is_multiple_of(seq_len);
        faults.check(good, "train.batch_stages: tokens", &tokens, &expected);
    }
}

fn check_lengths(recipe: &Recipe, faults: &mut Faults) {
    let train = &recipe.train;
    let is_text = recipe.objective == ObjectiveKind::NextToken;
    let expected = "none, because only rows of texts can be cut: objective.kind is not next_token";
    let found = format!("{} stages", train.seq_stages.len());
    faults.check(is_text || train.seq_stages.is_empty(), "train.seq_stages", &found, expected);
    for SeqStage { seq_len, .. } in &train.seq_stages {
        let good = *seq_len > 0 && train.seq_len.is_multiple_of(*seq_len);
        let expected = format!("a divisor of train.seq_len, {}", train.seq_len);
        faults.check(good, "train.seq_stages: seq_len", seq_len, &expected);
    }
}

fn check_tokens(recipe: &Recipe, faults: &mut Faults) {
    let train = &recipe.train;
    if train.batch_stages.is_empty() {
        return;
    }
    let expected = "1, because train.batch_stages says how many tokens a step has";
    let n = train.grad_accumulation;
    faults.check(n == 1, "train.grad_accumulation", &n, expected);
    let micro_batch = train.batch_size.saturating_mul(train.seq_len);
    for BatchStage { tokens, .. } in &train.batch_stages {
        faults.check(*tokens > 0, "train.batch_stages: tokens", tokens, "at least 1");
        let is_one = *tokens <= micro_batch || !recipe.optimizer.in_backward;
        let expected = format!(
            "at most train.batch_size times train.seq_len, {micro_batch}, because \
             optimizer.in_backward is true"
        );
        faults.check(is_one, "train.batch_stages: tokens", tokens, &expected);
    }
}
