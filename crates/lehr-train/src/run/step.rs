//! One step: forward, backward, update.

use std::collections::HashMap;

use lehr_data::Batch;
use lehr_tensor::inplace::{Clip, SquareSum};
use lehr_tensor::{Param, Tensor};

use super::Session;
use crate::optim::Update;
use crate::recipe::OptimizerConfig;
use crate::{Error, LossScale, Result, checkpoint};

/// Dividing by the labels of the whole step makes the gradient independent of how the step is cut
/// into micro-batches.
fn normalizer(batches: &[Batch]) -> f32 {
    batches.iter().map(|b| b.n_targets).sum::<usize>().max(1) as f32
}

/// A step of which a GPU may still be at work.
pub(super) struct Launched {
    /// The loss of each micro-batch, `[1]`, times the factor.
    losses: Vec<Tensor>,
    /// Of the gradient, times the factor.
    squares: SquareSum,
    /// Of loss scaling.
    factor: f32,
}

impl Session<'_> {
    /// Begins a step, with updates after or inside of backward.
    pub(super) fn launch_step(&mut self, batches: &[Batch], lr: f32) -> Result<Launched> {
        let OptimizerConfig::Adamw { in_backward, .. } = self.recipe.optimizer;
        if in_backward {
            return self.step_in_backward(batches, lr);
        }
        match self.one_launch.take() {
            None => self.step(batches, lr),
            Some(mut one_launch) => {
                // The first step loads kernels and finds the memory.
                let launched = match self.has_launched {
                    false => self.step(batches, lr),
                    true => one_launch.run(|| self.step(batches, lr)),
                };
                (self.one_launch, self.has_launched) = (Some(one_launch), true);
                launched
            }
        }
    }

    /// Forward and backward of all micro-batches, then one update by the clipped gradient, of which
    /// nothing comes if it is not finite. On a GPU all of this is only begun.
    fn step(&mut self, batches: &[Batch], lr: f32) -> Result<Launched> {
        let factor = self.state.loss_scale.map_or(1.0, |scale| scale.factor);
        let mut losses: Vec<Tensor> = Vec::new();
        for batch in batches {
            let part = self.task.objective.loss(batch, normalizer(batches) / factor)?;
            losses.push(part.detach());
            part.backward()?;
        }
        let params = self.task.objective.model().params();
        let grads: Vec<_> = params.params().iter().filter_map(Param::grad).collect();
        let squares = SquareSum::of(&grads, &losses)?;
        drop(grads);
        let OptimizerConfig::Adamw { clip_norm, .. } = self.recipe.optimizer;
        let clip = Clip { squares: &squares, norm: clip_norm };
        self.optimizer.step(params, self.update(lr, 1.0 / factor), clip)?;
        Ok(Launched { losses, squares, factor })
    }

    /// Waits for a step and gives its loss and the gradient's norm before clipping.
    pub(super) fn finish_step(
        &mut self,
        mut launched: Launched,
        batches: &[Batch],
        lr: f32,
    ) -> Result<(f64, f64)> {
        loop {
            let factor = f64::from(launched.factor);
            let mut loss = 0.0;
            for part in &launched.losses {
                loss += f64::from(part.item()?) / factor;
            }
            let norm = launched.squares.get()?.sqrt() / factor;
            if loss.is_finite() && norm.is_finite() {
                self.task.objective.model().params().clear_grads();
                self.state.loss_scale = self.state.loss_scale.map(LossScale::after_step);
                return Ok((loss, norm));
            }
            // In f16 it may be the factor that was too large, for the gradient. The step changed
            // nothing: it is made again.
            let scale = self.state.loss_scale.filter(|_| loss.is_finite());
            let Some(smaller) = scale.and_then(LossScale::after_overflow) else {
                return Err(self.not_finite(loss, norm)?);
            };
            self.state.loss_scale = Some(smaller);
            self.task.objective.model().params().clear_grads();
            launched = self.launch_step(batches, lr)?;
        }
    }

    /// The update of the step at hand.
    fn update(&self, lr: f32, grad_scale: f32) -> Update {
        Update { number: self.state.step + 1, lr, grad_scale }
    }

    /// The same with every parameter updated as soon as backward has its gradient, which is then
    /// forgotten: there is never room for the whole gradient, and so no clipping and one batch.
    fn step_in_backward(&mut self, batches: &[Batch], lr: f32) -> Result<Launched> {
        let (mut losses, mut squares) = (Vec::new(), 0.0);
        for batch in batches {
            let part = self.task.objective.loss(batch, normalizer(batches))?;
            let value = part.detach();
            // Before anything is updated.
            if !value.item()?.is_finite() {
                return Err(self.not_finite(f64::from(value.item()?), 0.0)?);
            }
            losses.push(value);
            let params = self.task.objective.model().params();
            self.optimizer.begin(self.update(lr, 1.0));
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
            part.backward_each(|id| by_id.get(&id).map_or(Ok(()), |param| update(param)))?;
            // What backward could not tell to be complete.
            params.params().iter().try_for_each(update)?;
        }
        Ok(Launched { losses, squares: SquareSum::known(squares), factor: 1.0 })
    }

    /// The error of a step whose loss or gradient is no number, of which the weights were kept. The
    /// state is saved for study.
    fn not_finite(&mut self, loss: f64, grad_norm: f64) -> Result<Error> {
        let (what, value) = match loss.is_finite() {
            false => ("the loss".to_owned(), loss),
            true => (format!("the gradient of `{}`", self.first_bad_gradient()), grad_norm),
        };
        let debug = self.dir.map(|dir| dir.path().join(format!("debug-step-{}", self.state.step)));
        if let Some(place) = &debug {
            let objective = self.task.objective.as_ref();
            checkpoint::save_at(self.storage, place, objective, &*self.optimizer, &self.state)?;
        }
        Ok(Error::NotFinite { step: self.state.step, what, value, debug })
    }

    fn first_bad_gradient(&self) -> String {
        let finite = |grad| SquareSum::of(&[grad], &[])?.get().map(f64::is_finite);
        let is_finite = |grad| finite(grad).unwrap_or(false);
        let bad = |p: &&Param| p.grad().is_some_and(|grad| !is_finite(grad));
        let params = self.task.objective.model().params().params();
        params.iter().find(bad).map_or_else(|| "all".to_owned(), |p| p.name().to_owned())
    }
}
