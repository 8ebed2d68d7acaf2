//! What is learnt: from a batch and a model to a loss.

mod classify;
mod evaluate;
mod language;

pub use classify::Classify;
pub use evaluate::{Evaluation, Scores, evaluate};
pub use language::{LanguageModel, next_token_loss};
use lehr_data::Batch;
use lehr_model::io::TensorFile;
use lehr_model::{Model, TokenRows, Tokens};
use lehr_tensor::{Shape, Tensor, no_grad};
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::ChatTemplate;
use serde_json::Value;

use crate::Result;

/// What a batch gives: the loss that is minimised, and numbers that are only shown.
pub struct Loss {
    /// The loss, `[1]`: a sum over the batch divided by the normaliser.
    pub value: Tensor,
    /// Named numbers.
    pub metrics: Vec<Metric>,
}

impl Loss {
    /// A loss without further numbers.
    #[must_use]
    pub fn new(value: Tensor) -> Self {
        Self { value, metrics: Vec::new() }
    }

    /// Adds a named number, `[1]`: a sum over the batch divided by the same normaliser as the loss.
    /// The numbers of the micro-batches of a step are added up, like their losses.
    #[must_use]
    pub fn with_metric(mut self, name: &'static str, value: &Tensor) -> Self {
        self.metrics.push(Metric { name, value: value.detach() });
        self
    }
}

/// A number that an objective shows beside the loss.
pub struct Metric {
    /// Its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Its value, `[1]`. It may still be computed on a GPU.
    pub value: Tensor,
}

/// What a checkpoint keeps of an objective, beside the weights of its model.
pub struct ObjectiveState {
    /// Named tensors.
    pub tensors: Vec<(String, Tensor)>,
    /// Everything else.
    pub values: Value,
}

/// A model with the loss it is trained by.
pub trait Objective {
    /// The loss of a batch: the sum over its targets divided by `normalizer`. In f16 the normaliser
    /// is smaller than the number of targets by the factor of loss scaling.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss>;

    /// What a held-out batch gives, from one pass without recording.
    ///
    /// # Errors
    /// If the batch does not fit the model or memory runs out.
    fn evaluate(&self, batch: &Batch) -> Result<Scores> {
        Scores::of(&no_grad(|| self.loss(batch, 1.0))?)
    }

    /// The model with all parameters.
    fn model(&self) -> &Model;

    /// Further models, which are used and not trained: a teacher, a reference. They are moved to
    /// the device with the first.
    fn frozen_models(&self) -> Vec<&Model> {
        Vec::new()
    }

    /// What the objective makes between steps of what its model is now; `None` if it learns from
    /// the data alone.
    fn rollout(&mut self) -> Option<&mut dyn Rollout> {
        None
    }

    /// Called after each optimiser step, `step` of them made: a moving average is updated here.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    fn after_step(&mut self, step: u64) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// What a checkpoint keeps of the objective itself; `None` if there is nothing.
    ///
    /// # Errors
    /// If a tensor cannot be brought from its device.
    fn state(&self) -> Result<Option<ObjectiveState>> {
        Ok(None)
    }

    /// Takes back what [`Objective::state`] gave. `load` reads a tensor by name and shape.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a value is not what it should be.
    fn restore(
        &mut self,
        load: &dyn Fn(&str, Shape) -> Result<Tensor>,
        values: &Value,
    ) -> Result<()> {
        let _ = (load, values);
        Ok(())
    }

    /// Its tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// The template of conversations, for objectives that learn them.
    fn template(&self) -> Option<&ChatTemplate> {
        None
    }

    /// Refuses a prompt that leaves [`Objective::sample`] no room for a text. It runs nothing.
    ///
    /// # Errors
    /// If the prompt does not fit the model.
    fn check_prompt(&self, prompt: &str) -> Result<()> {
        let _ = prompt;
        Ok(())
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
    fn config_json(&self) -> Value;

    /// The weights of a checkpoint.
    ///
    /// # Errors
    /// If a parameter cannot be brought from its device.
    fn weights(&self) -> Result<TensorFile> {
        Ok(TensorFile::of_params(self.model().params())?)
    }
}

/// Makes the batches of a step from what the model is now, as reinforcement learning does.
pub trait Rollout {
    /// Turns the batches of the loader (prompts) into those the step learns from. It must be a pure
    /// function of the weights, the batches and `step`, the number of steps made, so that a resumed
    /// run makes the same.
    ///
    /// # Errors
    /// If a batch does not fit the model or memory runs out.
    fn batches(&mut self, batches: Vec<Batch>, step: u64) -> Result<Vec<Batch>>;
}

/// The tokens of a batch, as a model takes them.
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
