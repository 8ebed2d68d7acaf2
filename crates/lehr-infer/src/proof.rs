//! Comparison of a model with its copy in another format.

mod parts;
mod texts;

use std::fmt;

use lehr_model::Model;
use lehr_tensor::{Tensor, no_grad};

pub(crate) use self::parts::Pair;
pub(crate) use self::texts::{probe_ids, tokenizer_faults};
use crate::Result;

/// A sequence of added tokens and texts in several scripts may differ this many times more than
/// running text: control tokens have unusual states.
const PROBE_FACTOR: f64 = 2.0;

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

/// A part of a model that can differ in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the weights compute.
    Weights,
    /// The ids of a text, or the text of ids.
    Tokenizer,
    /// The ids that end a text.
    EndIds,
    /// The chat template.
    Template,
    /// The pooling of text vectors.
    Pooling,
    /// The head of a classifier or another task.
    Head,
    /// The labels of a classifier.
    Labels,
}

impl Part {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Tokenizer => "tokenizer",
            Self::EndIds => "end ids",
            Self::Template => "chat template",
            Self::Pooling => "pooling",
            Self::Head => "head",
            Self::Labels => "labels",
        }
    }

    /// Returns advice for a copy in which this part differs.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Weights => {
                "choose a format with more bits, or report the model's family and format"
            }
            Self::Tokenizer => {
                "GGUF cannot say how this tokenizer reads text: convert to a folder, which keeps \
                 the tokenizer's files"
            }
            Self::EndIds | Self::Template => {
                "check generation_config.json and the chat template of the source"
            }
            Self::Pooling => "check modules.json and the files it names",
            Self::Head | Self::Labels => {
                "report the model's class: its head was not copied as it should be"
            }
        }
    }
}

/// A difference that its format does not explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it is.
    pub part: Part,
    /// What was found, and what was expected.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part.name(), self.text)
    }
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
    /// The same over a sequence of added tokens and texts in several scripts; `None` without a
    /// tokenizer.
    pub probe_error: Option<f64>,
    /// Mean of Σ p ln(p / q) over the positions, in nats; `None` for hidden states.
    pub kl: Option<f64>,
    /// Share of positions at which both rank the same token first; `None` for hidden states.
    pub top1: Option<f64>,
    /// Whether the tokenizer of the copy gives the same ids; `None` without a tokenizer.
    pub same_ids: Option<bool>,
    /// The other parts that were compared.
    pub compared: Vec<Part>,
    /// Differences in them.
    pub differences: Vec<Fault>,
    /// The bounds of the copy's format.
    pub bounds: Bounds,
}

impl Proof {
    /// Whether the copy computes what the source does, as closely as its format allows.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.faults().is_empty()
    }

    /// Lists each measure outside its bound, and each part that differs. A part that is not exact
    /// comes before the weights, because other ids explain other results.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let (bounds, mut faults) = (self.bounds, self.differences.clone());
        let mut add = |text: String| faults.push(Fault { part: Part::Weights, text });
        // NaN is a fault.
        let is_above = |value: f64, most: f64| value.is_nan() || value > most;
        if is_above(self.error, bounds.error) {
            let (found, most) = (self.error, bounds.error);
            add(format!("relative error {found:.3e}, expected at most {most:.1e}"));
        }
        let most = PROBE_FACTOR * bounds.error;
        if let Some(found) = self.probe_error.filter(|error| is_above(*error, most)) {
            add(format!(
                "relative error {found:.3e} on added tokens and several scripts, expected at most \
                 {most:.1e}"
            ));
        }
        if let Some(kl) = self.kl.filter(|kl| is_above(*kl, bounds.kl)) {
            let most = bounds.kl;
            add(format!("KL divergence {kl:.2e} nats, expected at most {most:.1e}"));
        }
        if let Some(top1) = self.top1.filter(|top1| is_above(-top1, -bounds.top1)) {
            let (found, least) = (100.0 * top1, 100.0 * bounds.top1);
            add(format!("same first choice {found:.1} %, expected at least {least:.0} %"));
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

/// ‖b − a‖ / ‖a‖.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let total: f64 = a.iter().map(|x| square(f64::from(*x))).sum();
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*b) - f64::from(*a))).sum();
    let is_whole = a.len() == b.len() && apart.is_finite();
    if is_whole { (apart / total.max(1e-30)).sqrt() } else { f64::INFINITY }
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
        probe_error: None,
        same_ids: None,
        compared: Vec::new(),
        differences: Vec::new(),
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
