//! Evaluation on held-out data.

use std::collections::BTreeMap;

use lehr_data::Loader;
use lehr_eval::metrics::EntityCounts;
use serde::{Deserialize, Serialize};

use super::{Loss, Objective};
use crate::Result;

/// Results of a held-out batch: sums over its targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The loss, in nats.
    pub nats: f64,
    /// Number of targets predicted correctly, for objectives with a correct answer.
    pub n_correct: Option<usize>,
    /// Entities, for objectives that find them.
    pub entities: Option<EntityCounts>,
    /// The objective's named numbers.
    pub metrics: Vec<(&'static str, f64)>,
}

impl Scores {
    /// Reads a loss computed with a normaliser of 1.
    ///
    /// # Errors
    /// If a device fails.
    pub fn of(loss: &Loss) -> Result<Self> {
        let nats = f64::from(loss.value.item()?);
        let read = |m: &super::Metric| Ok((m.name, f64::from(m.value.item()?)));
        let metrics = loss.metrics.iter().map(read).collect::<Result<_>>()?;
        Ok(Self { nats, n_correct: None, entities: None, metrics })
    }
}

/// How well entities are found, all types together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntityScores {
    /// Share of the found ones that are right.
    pub precision: f64,
    /// Share of the expected ones that are found.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

impl EntityScores {
    fn of(counts: &EntityCounts) -> Self {
        let total = counts.total();
        Self { precision: total.precision(), recall: total.recall(), f1: total.f1() }
    }
}

/// Results on held-out data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss per target, in nats.
    pub loss: f64,
    /// Loss per byte of text, in bits: comparable between tokenizers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Share of correct predictions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Precision, recall and F1 of entities, over all types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<EntityScores>,
    /// Number of targets.
    pub n_targets: u64,
    /// The objective's named numbers, means per target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// Evaluates the batches of a sequential loader, each in one pass without recording. `batches_max`
/// is the maximum number of batches (0 = all).
///
/// # Errors
/// If a batch does not fit the model or memory runs out.
pub fn evaluate(
    objective: &dyn Objective,
    loader: &dyn Loader,
    batches_max: u64,
) -> Result<Evaluation> {
    let all = loader.batches_per_epoch();
    let n_batches = if batches_max == 0 { all } else { all.min(batches_max) };
    let (mut nats, mut n_targets, mut n_bytes) = (0.0f64, 0u64, 0u64);
    let mut n_correct = Some(0);
    let mut entities: Option<EntityCounts> = None;
    let mut sums = BTreeMap::<String, f64>::new();
    for index in 0..n_batches {
        let batch = loader.batch(index)?;
        let scores = objective.evaluate(&batch)?;
        nats += scores.nats;
        n_targets += batch.n_targets as u64;
        n_bytes += batch.target_bytes;
        n_correct = n_correct.zip(scores.n_correct).map(|(sum, n)| sum + n);
        if let Some(counts) = &scores.entities {
            entities.get_or_insert_default().merge(counts);
        }
        for (name, value) in scores.metrics {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    let per = |sum: f64, n: u64| if n == 0 { 0.0 } else { sum / n as f64 };
    Ok(Evaluation {
        loss: per(nats, n_targets),
        bits_per_byte: (n_bytes > 0).then(|| nats / std::f64::consts::LN_2 / n_bytes as f64),
        accuracy: n_correct.map(|n| per(n as f64, n_targets)),
        entities: entities.as_ref().map(EntityScores::of),
        n_targets,
        metrics: sums.into_iter().map(|(name, sum)| (name, per(sum, n_targets))).collect(),
    })
}
