//! One step: forward, backward, update. `lehr bench step` times the same code.

use std::collections::{BTreeMap, HashMap};

use lehr_data::Batch;
use lehr_model::Model;
use lehr_tensor::cuda::OneLaunch;
use lehr_tensor::inplace::{Clip, SquareSum};
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
    /// If steps are recorded as CUDA graphs, and whether one has been made without.
    graph: Option<OneLaunch>,
    has_run: bool,
}

/// What a step is made of.
#[derive(Clone, Copy)]
pub struct StepInputs<'a> {
    /// What is trained.
    pub params: &'a ParamStore,
    /// The loss of a batch for a normaliser.
    pub loss: &'a dyn Fn(&Batch, f32) -> Result<Loss>,
    /// The micro-batches.
    pub batches: &'a [Batch],
    /// Number of the step, from 1.
    pub number: u64,
    /// Learning rate.
    pub lr: f32,
}

impl StepInputs<'_> {
    /// What the loss is a mean over. Dividing by the targets of the whole step makes the gradient
    /// independent of how the step is cut into micro-batches.
    fn normalizer(&self) -> f32 {
        self.batches.iter().map(|b| b.n_targets).sum::<usize>().max(1) as f32
    }
}

/// A step that a GPU may still be at work on.
pub struct Enqueued {
    /// The loss of each micro-batch, `[1]`, times the factor.
    losses: Vec<Tensor>,
    /// The named numbers of all micro-batches, times the factor.
    metrics: Vec<Metric>,
    /// Squares of the gradient, times the square of the factor.
    squares: SquareSum,
    /// The factor of loss scaling.
    factor: f32,
}

/// The numbers of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepNumbers {
    /// Mean loss per target.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The objective's named numbers, means per target.
    pub metrics: BTreeMap<String, f64>,
}

/// How a step ended.
pub enum StepEnd {
    /// The weights were updated.
    Made(StepNumbers),
    /// In f16 the gradient overflowed and nothing was updated; the factor of the loss is halved,
    /// and the step is to be made again.
    Overflow,
    /// The loss or the gradient is not finite, whatever the factor.
    NotFinite(StepNumbers),
}

impl Stepper {
    /// Begins with the state of a run before its first step, for a model on its device.
    ///
    /// # Errors
    /// If there is no memory for the optimiser's state, or the device cannot be used.
    pub fn new(config: &OptimizerConfig, model: &Model, cuda_graph: bool) -> Result<Self> {
        let (device, dtype) = model.compute();
        let graph = match device {
            Device::Cuda(ordinal) if cuda_graph => Some(OneLaunch::new(ordinal)?),
            _ => None,
        };
        Ok(Self {
            config: *config,
            optimizer: optim::build(config, model.params())?,
            loss_scale: (dtype == DType::F16).then_some(LossScale::START),
            graph,
            has_run: false,
        })
    }

    /// Begins a step: on a GPU nothing is waited for, unless updates are made inside of backward.
    ///
    /// # Errors
    /// If a batch does not fit the model or memory runs out.
    pub fn enqueue(&mut self, inputs: StepInputs<'_>) -> Result<Enqueued> {
        if self.config.in_backward {
            return self.step_in_backward(inputs);
        }
        let Some(mut graph) = self.graph.take() else { return self.step(inputs) };
        // The first step loads kernels and finds the memory.
        let enqueued = match self.has_run {
            false => self.step(inputs),
            true => graph.run(|| self.step(inputs)),
        };
        (self.graph, self.has_run) = (Some(graph), true);
        enqueued
    }

    /// Forward and backward of all micro-batches, then one update by the clipped gradient. If the
    /// gradient is not finite, the update changes nothing.
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
        let squares = SquareSum::of(&grads, &losses)?;
        drop(grads);
        let update = Update { number: inputs.number, lr: inputs.lr, grad_scale: 1.0 / factor };
        let clip = Clip { squares: &squares, norm: self.config.clip_norm };
        self.optimizer.step(inputs.params, update, clip)?;
        Ok(Enqueued { losses, metrics, squares, factor })
    }

    /// The same with every parameter updated as soon as backward has its gradient, which is then
    /// forgotten: there is never room for the whole gradient, and so no clipping and one batch.
    fn step_in_backward(&mut self, inputs: StepInputs<'_>) -> Result<Enqueued> {
        let StepInputs { params, number, lr, .. } = inputs;
        let normalizer = inputs.normalizer();
        let (mut losses, mut metrics, mut squares) = (Vec::new(), Vec::new(), 0.0);
        for batch in inputs.batches {
            let loss = (inputs.loss)(batch, normalizer)?;
            let value = loss.value.detach();
            let is_finite = value.item()?.is_finite();
            losses.push(value);
            metrics.extend(loss.metrics);
            // Before anything is updated.
            if !is_finite {
                break;
            }
            self.optimizer.begin(Update { number, lr, grad_scale: 1.0 });
            let mut update = |param: &Param| -> Result<()> {
                let Some(grad) = param.grad() else { return Ok(()) };
                let square = SquareSum::of(std::slice::from_ref(&grad), &[])?.get()?;
                drop(grad);
                squares += square;
                // A parameter whose gradient is no number is left as it is, with that gradient.
                if square.is_finite() {
                    self.optimizer.update(param)?;
                    param.clear_grad();
                }
                Ok(())
            };
            let by_id: HashMap<_, _> = params.params().iter().map(|p| (p.id(), p)).collect();
            loss.value.backward_each(|id| by_id.get(&id).map_or(Ok(()), |param| update(param)))?;
            // What backward could not tell to be complete.
            params.params().iter().try_for_each(update)?;
        }
        Ok(Enqueued { losses, metrics, squares: SquareSum::known(squares), factor: 1.0 })
    }

    /// Waits for a step. Gradients are forgotten, unless they are to blame.
    ///
    /// # Errors
    /// If a device fails.
    pub fn wait(&mut self, enqueued: &Enqueued, params: &ParamStore) -> Result<StepEnd> {
        let factor = f64::from(enqueued.factor);
        let mut numbers = StepNumbers::default();
        for part in &enqueued.losses {
            numbers.loss += f64::from(part.item()?) / factor;
        }
        for Metric { name, value } in &enqueued.metrics {
            let sum = numbers.metrics.entry((*name).to_owned()).or_default();
            *sum += f64::from(value.item()?) / factor;
        }
        numbers.grad_norm = enqueued.squares.get()?.sqrt() / factor;
        if numbers.loss.is_finite() && numbers.grad_norm.is_finite() {
            params.clear_grads();
            self.loss_scale = self.loss_scale.map(LossScale::after_step);
            return Ok(StepEnd::Made(numbers));
        }
        let scale = self.loss_scale.filter(|_| numbers.loss.is_finite());
        let Some(smaller) = scale.and_then(LossScale::after_overflow) else {
            return Ok(StepEnd::NotFinite(numbers));
        };
        self.loss_scale = Some(smaller);
        params.clear_grads();
        Ok(StepEnd::Overflow)
    }
}
