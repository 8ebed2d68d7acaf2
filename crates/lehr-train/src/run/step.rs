//! One step: forward, backward, update. `lehr bench step` times the same code.
//!
//! A step is split in two. [`Stepper::enqueue`] starts all work without waiting for a GPU, so the
//! host can prepare the next batches meanwhile. [`Stepper::wait`] then reads the few numbers that
//! decide how the step ended.

use std::collections::{BTreeMap, HashMap};

use lehr_data::Batch;
use lehr_model::Model;
use lehr_tensor::cuda::StepGraph;
use lehr_tensor::inplace::{Clip, SquaredGradNorm};
use lehr_tensor::{DType, Device, Param, ParamStore, Tensor};

use crate::objective::{Loss, Metric};
use crate::optim::{self, Optimizer, Update};
use crate::recipe::OptimizerConfig;
use crate::{LossScale, Result};

/// Makes the steps of a run.
pub struct Stepper {
    config: OptimizerConfig,
    /// The rule and its state.
    pub optimizer: Box<dyn Optimizer>,
    /// The factor of the loss, for models in f16.
    pub loss_scale: Option<LossScale>,
    /// The loss above which a step drops its update; `None` = no limit. With a limit, the host
    /// waits for the loss before the update. It excludes `in_backward` and CUDA graphs.
    pub loss_limit: Option<f64>,
    /// The recorder, if steps are recorded as CUDA graphs.
    graph: Option<StepGraph>,
    /// Rows and tokens of a row in each micro-batch of the last step; empty before the first.
    shapes: Vec<(usize, usize)>,
}

/// The inputs of one step.
#[derive(Clone, Copy)]
pub struct StepInputs<'a> {
    /// The parameters to train.
    pub params: &'a ParamStore,
    /// Computes the loss of a batch: the sum over its targets divided by the normaliser.
    pub loss: &'a dyn Fn(&Batch, f32) -> Result<Loss>,
    /// The micro-batches.
    pub batches: &'a [Batch],
    /// Number of the step, from 1.
    pub number: u64,
    /// Learning rate.
    pub lr: f32,
}

impl StepInputs<'_> {
    /// Returns the number of targets of the whole step. Dividing by it makes the gradient
    /// independent of how the step is cut into micro-batches.
    fn normalizer(&self) -> f32 {
        self.batches.iter().map(|b| b.n_targets).sum::<usize>().max(1) as f32
    }
}

/// A step whose work may still be running on a GPU.
pub struct Enqueued {
    /// The loss of each micro-batch, `[1]`, times the factor.
    losses: Vec<Tensor>,
    /// The metrics of all micro-batches, times the factor.
    metrics: Vec<Metric>,
    /// Squared norm of the gradient, times the square of the factor.
    squared_norm: SquaredGradNorm,
    /// The factor of loss scaling.
    factor: f32,
    /// Number of parameters that were updated inside backward.
    n_updated: usize,
    /// Whether the loss was above the limit, so that nothing was updated.
    is_above_limit: bool,
}

/// The numbers of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepNumbers {
    /// Mean loss per target.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The objective's metrics, means per target.
    pub metrics: BTreeMap<String, f64>,
    /// Whether the update was dropped.
    pub skipped: bool,
}

/// How a step ended.
pub enum StepEnd {
    /// The weights were updated, unless the loss was above the limit.
    Made(StepNumbers),
    /// In f16 the gradient overflowed and nothing was updated. The factor of the loss is halved,
    /// and the step must be repeated.
    Overflow,
    /// The loss or the gradient is not finite, and no smaller factor helps.
    NotFinite {
        /// The numbers of the step.
        numbers: StepNumbers,
        /// Number of parameters that were updated before the gradient of another one turned out not
        /// to be finite: 0, except with `optimizer.in_backward`.
        n_updated: usize,
    },
}

impl Stepper {
    /// Creates the state of a run before its first step, for a model on its device.
    ///
    /// # Errors
    /// If there is no memory for the optimiser's state, or the device cannot be used.
    pub fn new(config: &OptimizerConfig, model: &Model, cuda_graph: bool) -> Result<Self> {
        let (device, dtype) = model.compute();
        let graph = match device {
            Device::Cuda(ordinal) if cuda_graph => Some(StepGraph::new(ordinal)?),
            _ => None,
        };
        Ok(Self {
            config: *config,
            optimizer: optim::build(config, model.params())?,
            loss_scale: (dtype == DType::F16).then_some(LossScale::START),
            loss_limit: None,
            graph,
            shapes: Vec::new(),
        })
    }

    /// Begins a step. It does not wait for a GPU, except with `in_backward`, which reads the norm
    /// of each gradient.
    ///
    /// # Errors
    /// If a batch does not fit the model or memory runs out.
    pub fn enqueue(&mut self, inputs: StepInputs<'_>) -> Result<Enqueued> {
        if self.config.in_backward {
            return self.step_in_backward(inputs);
        }
        let Some(mut graph) = self.graph.take() else { return self.step(inputs) };
        let shapes: Vec<_> = inputs.batches.iter().map(|b| (b.batch_size, b.seq_len)).collect();
        // The first step, and the first of another size, loads kernels and reserves memory, which
        // cannot happen while a graph is recorded.
        let enqueued = match self.shapes == shapes {
            false => self.step(inputs),
            true => graph.run(|| self.step(inputs)),
        };
        (self.graph, self.shapes) = (Some(graph), shapes);
        enqueued
    }

    /// Runs forward and backward of all micro-batches, then one update by the clipped gradient.
    ///
    /// Loss and norm are not read here, because that would wait for the GPU. The update kernels
    /// themselves change nothing if the gradient is not finite.
    fn step(&mut self, inputs: StepInputs<'_>) -> Result<Enqueued> {
        let factor = self.loss_scale.map_or(1.0, |scale| scale.factor);
        let normalizer = inputs.normalizer() / factor;
        let (mut losses, mut metrics): (Vec<Tensor>, _) = (Vec::new(), Vec::new());
        for batch in inputs.batches {
            let loss = (inputs.loss)(batch, normalizer)?;
            losses.push(loss.value.detach());
            metrics.extend(loss.metrics);
            loss.value.backward()?;
        }
        let grads: Vec<_> = inputs.params.params().iter().filter_map(Param::grad).collect();
        let squared_norm = SquaredGradNorm::of(&grads, &losses)?;
        drop(grads);
        let update = Update { number: inputs.number, lr: inputs.lr, grad_scale: 1.0 / factor };
        let clip = Clip { squared_norm: &squared_norm, max_norm: self.config.clip_norm };
        let is_above_limit = match self.loss_limit {
            Some(limit) => mean_loss(&losses, factor)? > limit,
            None => false,
        };
        if !is_above_limit {
            self.optimizer.step(inputs.params, update, clip)?;
        }
        Ok(Enqueued { losses, metrics, squared_norm, factor, n_updated: 0, is_above_limit })
    }

    /// Makes a step in which each parameter is updated as soon as backward has its gradient, whose
    /// memory is then released.
    ///
    /// The whole gradient never exists at once. So it cannot be clipped or accumulated, and a
    /// gradient that is not finite is found only after other parameters were updated: such a step
    /// cannot be undone. A loss that is not finite is found before backward and changes nothing.
    fn step_in_backward(&mut self, inputs: StepInputs<'_>) -> Result<Enqueued> {
        let StepInputs { params, number, lr, .. } = inputs;
        let normalizer = inputs.normalizer();
        let (mut losses, mut metrics) = (Vec::new(), Vec::new());
        let (mut squared_norm, mut n_updated) = (0.0, 0);
        for batch in inputs.batches {
            let loss = (inputs.loss)(batch, normalizer)?;
            let value = loss.value.detach();
            let is_finite = value.item()?.is_finite();
            losses.push(value);
            metrics.extend(loss.metrics);
            // Checked before any parameter is updated.
            if !is_finite {
                break;
            }
            self.optimizer.begin(Update { number, lr, grad_scale: 1.0 });
            let mut update = |param: &Param| -> Result<()> {
                let Some(grad) = param.grad() else { return Ok(()) };
                let square = SquaredGradNorm::of(std::slice::from_ref(&grad), &[])?.get()?;
                drop(grad);
                squared_norm += square;
                // A gradient that is not finite is kept, so that the error can name the parameter.
                if square.is_finite() {
                    self.optimizer.update(param)?;
                    param.clear_grad();
                    n_updated += 1;
                }
                Ok(())
            };
            let by_id: HashMap<_, _> = params.params().iter().map(|p| (p.id(), p)).collect();
            loss.value.backward_each(|id| by_id.get(&id).map_or(Ok(()), |param| update(param)))?;
            // Backward reports a gradient only when it knows that nothing more is added to it.
            params.params().iter().try_for_each(update)?;
        }
        let squared_norm = SquaredGradNorm::known(squared_norm);
        let (factor, is_above_limit) = (1.0, false);
        Ok(Enqueued { losses, metrics, squared_norm, factor, n_updated, is_above_limit })
    }

    /// Waits for a step and reads its numbers. Clears the gradients, except those of a step that
    /// failed, which the error report needs.
    ///
    /// # Errors
    /// If a device fails.
    pub fn wait(&mut self, enqueued: &Enqueued, params: &ParamStore) -> Result<StepEnd> {
        let factor = f64::from(enqueued.factor);
        let mut numbers = StepNumbers {
            loss: mean_loss(&enqueued.losses, enqueued.factor)?,
            skipped: enqueued.is_above_limit,
            ..StepNumbers::default()
        };
        for Metric { name, value } in &enqueued.metrics {
            let sum = numbers.metrics.entry((*name).to_owned()).or_default();
            *sum += f64::from(value.item()?) / factor;
        }
        numbers.grad_norm = enqueued.squared_norm.get()?.sqrt() / factor;
        if numbers.loss.is_finite() && numbers.grad_norm.is_finite() {
            params.clear_grads();
            if !numbers.skipped {
                self.loss_scale = self.loss_scale.map(LossScale::after_step);
            }
            return Ok(StepEnd::Made(numbers));
        }
        let scale = self.loss_scale.filter(|_| numbers.loss.is_finite());
        let Some(smaller) = scale.and_then(LossScale::after_overflow) else {
            return Ok(StepEnd::NotFinite { numbers, n_updated: enqueued.n_updated });
        };
        self.loss_scale = Some(smaller);
        params.clear_grads();
        Ok(StepEnd::Overflow)
    }
}

/// Reads the losses of the micro-batches, which waits for a GPU, and returns that of the step.
fn mean_loss(losses: &[Tensor], factor: f32) -> Result<f64> {
    let part = |loss: &Tensor| Ok(f64::from(loss.item()?) / f64::from(factor));
    losses.iter().map(part).sum()
}
