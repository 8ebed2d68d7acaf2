//! Comparison of a model with its copy in another format.

use lehr_model::Model;
use lehr_tensor::{Tensor, no_grad};

use crate::Result;

/// Largest differences between a model and its copy that pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Largest [`Proof::error`].
    pub error: f64,
    /// Largest [`Proof::kl`], in nats.
    pub kl: f64,
    /// Smallest [`Proof::top1`].
    pub top1: f64,
}

/// Differences between a model and its copy on a sample text.
///
/// One measure alone is blind to some damage. The relative error hardly sees one wrong row of a
/// head, the divergence hardly sees wrong but flat logits, and the first choice sees neither where
/// the model is sure.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Number of sample tokens.
    pub n_tokens: usize,
    /// ‖b − a‖ / ‖a‖ over the logits `[T, V]` (or hidden states) `a` of the source and `b` of the
    /// copy, after subtracting the mean of each row, which a softmax ignores.
    pub error: f64,
    /// Mean of Σ p ln(p / q) over the positions, in nats; `None` for hidden states.
    pub kl: Option<f64>,
    /// Share of positions at which both rank the same token first; `None` for hidden states.
    pub top1: Option<f64>,
    /// Whether the tokenizer of the copy gives the sample the same ids; `None` without a tokenizer.
    pub same_ids: Option<bool>,
    /// The bounds of the copy's format.
    pub bounds: Bounds,
}

impl Proof {
    /// Whether the copy computes what the source does, as closely as its format allows.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.faults().is_empty()
    }

    /// Lists each measure outside its bound: what was found, and what was expected.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let (bounds, mut faults) = (self.bounds, Vec::new());
        // NaN is a fault.
        let is_above = |value: f64, most: f64| value.is_nan() || value > most;
        if is_above(self.error, bounds.error) {
            let (found, most) = (self.error, bounds.error);
            faults.push(format!("relative error {found:.3e}, expected at most {most:.1e}"));
        }
        if let Some(kl) = self.kl.filter(|kl| is_above(*kl, bounds.kl)) {
            let most = bounds.kl;
            faults.push(format!("KL divergence {kl:.2e} nats, expected at most {most:.1e}"));
        }
        if let Some(top1) = self.top1.filter(|top1| is_above(-top1, -bounds.top1)) {
            let (found, least) = (100.0 * top1, 100.0 * bounds.top1);
            faults.push(format!("same first choice {found:.1} %, expected at least {least:.0} %"));
        }
        if self.same_ids == Some(false) {
            faults.push("its tokenizer gives other ids".to_owned());
        }
        faults
    }
}

/// Hidden states `[T, D]`, and logits `[T, V]` of a model with a head.
pub(crate) struct Output {
    hidden: Tensor,
    logits: Option<Tensor>,
}

/// Runs a model on one sequence of ids.
pub(crate) fn outputs(model: &Model, ids: &[i32]) -> Result<Output> {
    no_grad(|| {
        let hidden = model.hidden(&model.tokens(ids, 1)?)?;
        let logits = match model.logits(&hidden) {
            Ok(logits) => Some(logits),
            Err(lehr_model::Error::NoHead { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Output { hidden, logits })
    })
}

/// Compares the outputs of a copy with those of its source.
pub(crate) fn compare(want: &Output, got: &Output, bounds: Bounds) -> Proof {
    // GGUF drops the heads of encoders.
    let both = want.logits.as_ref().zip(got.logits.as_ref());
    let (want, got) = both.unwrap_or((&want.hidden, &got.hidden));
    let width = want.shape().last().copied().unwrap_or(1);
    let (a, b) = (want.data(), got.data());
    let (mut square, mut total, mut kl, mut same) = (0.0, 0.0, 0.0, 0usize);
    for (a, b) in a.chunks(width).zip(b.chunks(width)) {
        let mean = |row: &[f32]| row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
        let (mean_a, mean_b) = (mean(a), mean(b));
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
            square += (b - a).powi(2);
            total += a * a;
        }
        kl += divergence(a, b);
        same += usize::from(largest(a) == largest(b));
    }
    let n = a.len() / width;
    Proof {
        n_tokens: n,
        error: if square.is_finite() { (square / total.max(1e-30)).sqrt() } else { f64::INFINITY },
        kl: both.map(|_| kl / n as f64),
        top1: both.map(|_| same as f64 / n as f64),
        same_ids: None,
        bounds,
    }
}

fn largest(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i)
}

/// Σ p ln(p / q) of two rows of logits.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let normalizer = |row: &[f32]| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        f64::from(top) + sum.ln()
    };
    let (za, zb) = (normalizer(a), normalizer(b));
    let term = |(a, b): (&f32, &f32)| {
        let (p, q) = (f64::from(*a) - za, f64::from(*b) - zb);
        p.exp() * (p - q)
    };
    a.iter().zip(b).map(term).sum()
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
