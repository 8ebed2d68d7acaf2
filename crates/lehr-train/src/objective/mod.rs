//! Training objectives: from a batch and a model to a loss.

mod classify;
mod evaluate;
mod language;
mod tag;

pub use classify::Classify;
pub use evaluate::{Evaluation, Scores, evaluate};
pub use language::{LanguageModel, next_token_loss};
use lehr_data::Batch;
use lehr_infer::ModelFiles;
use lehr_model::io::TensorFile;
use lehr_model::{Model, TokenRows, Tokens};
use lehr_tensor::{Shape, Tensor, no_grad};
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::ChatTemplate;
use serde_json::Value;
pub use tag::Tag;

use crate::Result;

/// The result of a batch: the loss to minimise, and metrics that are only shown.
pub struct Loss {
    /// The loss, `[1]`: a sum over the batch divided by the normaliser.
    pub value: Tensor,
    /// Named metrics.
    pub metrics: Vec<Metric>,
}

impl Loss {
    /// Creates a loss without metrics.
    #[must_use]
    pub fn new(value: Tensor) -> Self {
        Self { value, metrics: Vec::new() }
    }

    /// Adds a metric, `[1]`: a sum over the batch divided by the same normaliser as the loss.
    /// Metrics of the micro-batches of a step are summed, like their losses.
    #[must_use]
    pub fn with_metric(mut self, name: &'static str, value: &Tensor) -> Self {
        self.metrics.push(Metric { name, value: value.detach() });
        self
    }
}

/// A named number that an objective reports besides the loss.
pub struct Metric {
    /// Its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Its value, `[1]`. A GPU may still be computing it.
    pub value: Tensor,
}

/// The state of an objective in a checkpoint, besides the weights of its model.
pub struct ObjectiveState {
    /// Named tensors.
    pub tensors: Vec<(String, Tensor)>,
    /// All other values.
    pub values: Value,
}

/// A model with its training loss.
pub trait Objective {
    /// Computes the loss of a batch: the sum over its targets divided by `normalizer`. In f16 the
    /// normaliser is the number of targets divided by the loss scale.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss>;

    /// Evaluates a held-out batch in one forward pass without recording.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn evaluate(&self, batch: &Batch) -> Result<Scores> {
        Scores::of(&no_grad(|| self.loss(batch, 1.0))?)
    }

    /// Returns the model with all parameters.
    fn model(&self) -> &Model;

    /// Returns further models that are not trained, such as a teacher or a reference. They are
    /// moved to the device of the trained model.
    fn frozen_models(&self) -> Vec<&Model> {
        Vec::new()
    }

    /// Returns the rollout that makes batches between steps from the current weights; `None` if the
    /// objective trains on the data alone.
    fn rollout(&mut self) -> Option<&mut dyn Rollout> {
        None
    }

    /// Runs after each optimiser step; `step` steps were made. A moving average is updated here.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn after_step(&mut self, step: u64) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// Returns the objective's own state for a checkpoint; `None` if it has none.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    fn state(&self) -> Result<Option<ObjectiveState>> {
        Ok(None)
    }

    /// Restores the state from [`Objective::state`]. `load` reads a tensor by name and shape.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a value is not valid.
    fn restore(
        &mut self,
        load: &dyn Fn(&str, Shape) -> Result<Tensor>,
        values: &Value,
    ) -> Result<()> {
        let _ = (load, values);
        Ok(())
    }

    /// Returns the model's tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Returns the chat template, for objectives that train on conversations.
    fn template(&self) -> Option<&ChatTemplate> {
        None
    }

    /// Returns the files of the loaded model, whose settings checkpoints keep; `None` for a new
    /// model.
    fn files(&self) -> Option<&ModelFiles> {
        None
    }

    /// Checks that a prompt leaves [`Objective::sample`] room for a text. Does not run the model.
    ///
    /// # Errors
    /// If the prompt does not fit the model.
    fn check_prompt(&self, prompt: &str) -> Result<()> {
        let _ = prompt;
        Ok(())
    }

    /// Generates a text after `prompt`; `None` for objectives that generate no text.
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

    /// Returns the `config.json` of a checkpoint.
    fn config_json(&self) -> Value;

    /// Returns the weights of a checkpoint.
    ///
    /// # Errors
    /// If a parameter cannot be copied from its device.
    fn weights(&self) -> Result<TensorFile> {
        Ok(TensorFile::of_params(self.model().params())?)
    }
}

/// A source of batches that depend on the current weights, as in reinforcement learning.
pub trait Rollout {
    /// Turns the batches of the loader (prompts) into training batches. It must be a pure function
    /// of the weights, the batches and `step`, the number of steps made. Otherwise a resumed run
    /// would compute other results.
    ///
    /// # Errors
    /// If a batch does not fit the model or memory runs out.
    fn batches(&mut self, batches: Vec<Batch>, step: u64) -> Result<Vec<Batch>>;
}

/// Converts the tokens of a batch to the input of a model.
fn tokens_of(batch: &Batch) -> Result<Tokens> {
    let given = |values| Some(values).filter(|values: &&[i32]| !values.is_empty());
    Ok(Tokens::packed(&TokenRows {
        ids: &batch.tokens,
        positions: &batch.positions,
        block_positions: given(&batch.block_positions),
        segment_starts: &batch.segment_starts,
        prefix_lens: given(&batch.prefix_lens),
        batch_size: batch.batch_size,
        seq_len: batch.seq_len,
    })?)
}
