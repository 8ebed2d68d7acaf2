//! The time of a training step, measured before a run is planned.

use std::time::Instant;

use lehr_data::Batch;
use lehr_model::Model;
use lehr_tensor::{DType, Device, Philox};

use crate::objective::next_token_loss;
use crate::prepare::new_config;
use crate::recipe::ModelConfig;
use crate::run::{StepInputs, Stepper, memory_bytes};
use crate::{Recipe, Result};

/// Steps before the timed ones: the first allocates, and on a GPU compiles.
const WARM_UP: u64 = 2;
/// Least number of timed steps.
const STEPS_MIN: usize = 3;
/// Timing ends after so many seconds.
const SECONDS: f64 = 1.0;

/// What a few steps of a model show.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Median seconds of a step.
    pub seconds: f64,
    /// Bytes of memory that were taken for tensors.
    pub memory_bytes: u64,
    /// Numbers of all parameters.
    pub n_parameters: u64,
}

/// Measures a step of `recipe` with `vocab_size` ids on a device, by making some on random tokens;
/// `None` for a loaded model, which would have to be read first.
///
/// # Errors
/// If the model or its optimiser cannot be made there.
pub fn measure_step(
    recipe: &Recipe,
    vocab_size: usize,
    (device, dtype): (Device, DType),
) -> Result<Option<Measured>> {
    if matches!(recipe.model, ModelConfig::Load { .. }) {
        return Ok(None);
    }
    let mut model = Model::new(new_config(&recipe.model, vocab_size, None)?, recipe.run.seed)?;
    model.set_activation_checkpointing(recipe.train.activation_checkpointing);
    model.to_device(device, dtype)?;
    let mut stepper = Stepper::new(&recipe.optimizer, &model, false)?;
    let batches = batches(recipe, vocab_size);
    let mut number = 0;
    let mut step = || -> Result<f64> {
        number += 1;
        let start = Instant::now();
        let enqueued = stepper.enqueue(StepInputs {
            params: model.params(),
            loss: &|batch, normalizer| next_token_loss(&model, batch, normalizer),
            batches: &batches,
            number,
            lr: recipe.optimizer.lr,
        })?;
        stepper.wait(&enqueued, model.params())?;
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP {
        step()?;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < STEPS_MIN || start.elapsed().as_secs_f64() < SECONDS {
        times.push(step()?);
    }
    times.sort_by(f64::total_cmp);
    let n_parameters = model.params().params().iter().map(|p| p.shape().n_elements() as u64).sum();
    let memory_bytes = memory_bytes(device)?;
    Ok(Some(Measured { seconds: times[times.len() / 2], memory_bytes, n_parameters }))
}

/// The micro-batches of a step, of random tokens.
fn batches(recipe: &Recipe, vocab_size: usize) -> Vec<Batch> {
    let (rows, len) = (recipe.train.batch_size, recipe.train.seq_len);
    let n = rows * len;
    let stream = Philox::new(recipe.run.seed, 0);
    let id = |i: usize| (stream.block(i as u64)[0] as usize % vocab_size) as i32;
    let batch = |index: usize| {
        let ids: Vec<i32> = (0..=n).map(|i| id(index * (n + 1) + i)).collect();
        Batch {
            tokens: ids[..n].to_vec(),
            targets: ids[1..].to_vec(),
            positions: (0..n).map(|i| (i % len) as i32).collect(),
            segment_starts: vec![0; n],
            n_targets: n,
            ..Batch::padding(rows, len, 0)
        }
    };
    (0..recipe.train.grad_accumulation as usize).map(batch).collect()
}
