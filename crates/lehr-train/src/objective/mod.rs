//! What is learnt: from a batch and a model to a loss.

mod classify;
mod language;

pub use classify::Classify;
pub use language::LanguageModel;
use lehr_data::{Batch, Loader};
use lehr_model::io::TensorFile;
use lehr_model::{Model, TokenRows, Tokens};
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::ChatTemplate;
use serde::{Deserialize, Serialize};

use crate::Result;

/// A model with the loss it is trained by.
pub trait Objective {
    /// The loss `[1]` of a batch: the sum over its labels divided by `normalizer`.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Tensor>;

    /// How many of the batch's labels the model guesses right, for objectives with a right answer.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn n_correct(&self, batch: &Batch) -> Result<Option<usize>>;

    /// The model with all parameters.
    fn model(&self) -> &Model;

    /// Its tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// The template of conversations, for objectives that learn them.
    fn template(&self) -> Option<&ChatTemplate> {
        None
    }

    /// A text generated after `prompt`, for objectives that make texts.
    ///
    /// # Errors
    /// If the prompt does not fit the model or memory runs out.
    fn sample(
        &self,
        prompt: &str,
        max_tokens: usize,
        temperature: f32,
        seed: u64,
    ) -> Result<Option<String>>;

    /// The `config.json` of a checkpoint.
    fn config_json(&self) -> serde_json::Value;

    /// The weights of a checkpoint.
    ///
    /// # Errors
    /// If a parameter cannot be brought from its device.
    fn weights(&self) -> Result<TensorFile> {
        Ok(TensorFile::of_params(self.model().params())?)
    }
}

/// What held-out data says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss per label, in nats.
    pub loss: f64,
    /// Loss per byte of text, in bits: comparable between tokenizers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Share of right answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Labels looked at.
    pub n_targets: u64,
}

/// Runs the objective over a sequential loader without recording; at most `batches_max` batches
/// (0 = all).
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
    for index in 0..n_batches {
        let batch = loader.batch(index)?;
        let loss = lehr_tensor::no_grad(|| objective.loss(&batch, 1.0))?;
        nats += f64::from(loss.item()?);
        n_targets += batch.n_targets as u64;
        n_bytes += batch.target_bytes;
        n_correct = match (n_correct, objective.n_correct(&batch)?) {
            (Some(sum), Some(n)) => Some(sum + n),
            _ => None,
        };
    }
    let per = |sum: f64, n: u64| if n == 0 { 0.0 } else { sum / n as f64 };
    Ok(Evaluation {
        loss: per(nats, n_targets),
        bits_per_byte: (n_bytes > 0).then(|| nats / std::f64::consts::LN_2 / n_bytes as f64),
        accuracy: n_correct.map(|n| per(n as f64, n_targets)),
        n_targets,
    })
}

fn tokens_of(batch: &Batch) -> Result<Tokens> {
    Ok(Tokens::packed(&TokenRows {
        ids: &batch.tokens,
        positions: &batch.positions,
        block_positions: None,
        segment_starts: &batch.segment_starts,
        prefix_lens: None,
        batch_size: batch.rows,
        seq_len: batch.len,
    })?)
}
