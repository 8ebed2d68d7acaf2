//! The training loop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lehr_data::Batch;
use lehr_tensor::{Param, inplace};
use serde_json::json;

use crate::checkpoint::{self, Disk, Storage};
use crate::observe::{Event, Observer};
use crate::optim::{self, Optimizer};
use crate::recipe::OptimizerConfig;
use crate::{
    Error, Evaluation, Metrics, Recipe, Result, RunDir, Task, TrainState, evaluate, learning_rate,
    metrics,
};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where it stands.
    pub state: TrainState,
    /// Whether all steps were made; if not, it was asked to stop.
    pub finished: bool,
    /// The last look at held-out data, if the run is finished.
    pub evaluation: Option<Evaluation>,
}

/// Trains `task` by `recipe` until its last step or until `stop` is set, from the newest whole
/// checkpoint of `dir` if there is one. Without a directory nothing is written.
///
/// # Errors
/// If the data does not fit the model, memory or disk run out, or the loss is not finite.
pub fn run(
    recipe: &Recipe,
    task: &Task,
    dir: Option<&RunDir>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    run_with_storage(recipe, task, dir, &mut Disk, observer, stop)
}

/// [`run`] with its checkpoints written through `storage`.
///
/// # Errors
/// As [`run`].
pub fn run_with_storage(
    recipe: &Recipe,
    task: &Task,
    dir: Option<&RunDir>,
    storage: &mut dyn Storage,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let mut session = Session::start(recipe, task, dir, storage, observer)?;
    let steps = recipe.train.steps;
    while session.state.step < steps && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let batches = session.next_batches()?;
        let n_targets: usize = batches.iter().map(|b| b.n_targets).sum();

        // Dividing by the labels of the whole step makes the gradient independent of how the step
        // is cut into micro-batches.
        let normalizer = n_targets.max(1) as f32;
        let lr = session.learning_rate();
        let (loss, grad_norm) = match session.updates_in_backward() {
            false => session.step(&batches, normalizer, lr)?,
            true => session.step_in_backward(&batches, normalizer, lr)?,
        };
        let mut metrics = session.count(&batches, loss, grad_norm, lr, start);

        let step = session.state.step;
        if is_due(recipe.eval.every_steps, step, steps) {
            metrics.eval = Some(session.evaluate()?);
        }
        session.log(&metrics)?;
        if is_due(recipe.sample.every_steps, step, steps) {
            session.sample()?;
        }
        if is_due(recipe.checkpoint.every_steps, step, steps) {
            session.save()?;
        }
    }
    session.finish()
}

/// Whether something is due after `step`: every so many steps, and after the last.
fn is_due(every: u64, step: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}

/// The state of a run and what it works with.
struct Session<'a> {
    recipe: &'a Recipe,
    task: &'a Task,
    dir: Option<&'a RunDir>,
    storage: &'a mut dyn Storage,
    observer: &'a mut dyn Observer,
    optimizer: Box<dyn Optimizer>,
    state: TrainState,
    saved_step: Option<u64>,
    evaluation: Option<Evaluation>,
}

impl<'a> Session<'a> {
    fn start(
        recipe: &'a Recipe,
        task: &'a Task,
        dir: Option<&'a RunDir>,
        storage: &'a mut dyn Storage,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let params = task.objective.model().params();
        let mut session = Self {
            recipe,
            task,
            dir,
            storage,
            observer,
            optimizer: optim::build(&recipe.optimizer, params)?,
            state: TrainState::default(),
            saved_step: None,
            evaluation: None,
        };
        session.check_prompts()?;
        session.resume()?;
        let (step, steps, n_params) = (session.state.step, recipe.train.steps, params.n_values());
        session.observer.event(&Event::Started { step, steps, n_params });
        Ok(session)
    }

    /// Refuses at once the prompts that would end the run at its first sample.
    fn check_prompts(&self) -> Result<()> {
        let config = &self.recipe.sample;
        config.prompts.iter().try_for_each(|prompt| {
            self.task.objective.sample(prompt, 0, config.temperature, 0).map(drop)
        })
    }

    /// Takes up the newest checkpoint that is whole.
    fn resume(&mut self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        for (step, path) in checkpoint::list(dir).into_iter().rev() {
            if let Err(error) = checkpoint::verify(&path) {
                self.observer.event(&Event::Skipped { path: &path, reason: &error.to_string() });
                continue;
            }
            self.state =
                checkpoint::restore(&path, self.task.objective.as_ref(), &mut *self.optimizer)?;
            self.saved_step = Some(step);
            break;
        }
        metrics::truncate(&dir.metrics(), self.state.step)?;
        metrics::truncate(&dir.samples(), self.state.step)
    }

    fn next_batches(&self) -> Result<Vec<Batch>> {
        let n = self.recipe.train.accumulation;
        (0..n).map(|i| Ok(self.task.train.batch(self.state.step * n + i)?)).collect()
    }

    fn updates_in_backward(&self) -> bool {
        let OptimizerConfig::Adamw { in_backward, .. } = self.recipe.optimizer;
        in_backward
    }

    /// Forward and backward of all micro-batches, then one update by the clipped gradient. Returns
    /// the loss and the gradient's norm before clipping.
    fn step(&mut self, batches: &[Batch], normalizer: f32, lr: f32) -> Result<(f64, f64)> {
        let mut parts = Vec::new();
        for batch in batches {
            let part = self.task.objective.loss(batch, normalizer)?;
            parts.push(part.detach());
            part.backward()?;
        }
        // Only now does the host wait for a GPU: all of the step but the update has been launched.
        let mut loss = 0.0;
        for part in parts {
            loss += f64::from(part.item()?);
        }
        let grad_norm = self.grad_norm()?;
        self.check_finite(loss, grad_norm)?;
        let OptimizerConfig::Adamw { clip_norm, .. } = self.recipe.optimizer;
        let clips = clip_norm > 0.0 && grad_norm > f64::from(clip_norm);
        let scale = if clips { (f64::from(clip_norm) / grad_norm) as f32 } else { 1.0 };
        let params = self.task.objective.model().params();
        self.optimizer.step(params, lr, scale)?;
        params.clear_grads();
        Ok((loss, grad_norm))
    }

    /// The same with every parameter updated as soon as backward has its gradient, which is then
    /// forgotten: there is never room for the whole gradient, and so no clipping and one batch.
    fn step_in_backward(
        &mut self,
        batches: &[Batch],
        normalizer: f32,
        lr: f32,
    ) -> Result<(f64, f64)> {
        let (mut loss, mut squares) = (0.0, 0.0);
        for batch in batches {
            let part = self.task.objective.loss(batch, normalizer)?;
            loss += f64::from(part.item()?);
            self.check_finite(loss, 0.0)?;
            let params = self.task.objective.model().params();
            self.optimizer.begin(lr, 1.0);
            let mut update = |param: &Param| -> Result<()> {
                let Some(grad) = param.grad() else { return Ok(()) };
                let square = inplace::sum_of_squares_all(std::slice::from_ref(&grad))?;
                drop(grad);
                squares += square;
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
            // A parameter whose gradient is no number was left as it is, with that gradient.
            self.check_finite(loss, squares.sqrt())?;
        }
        Ok((loss, squares.sqrt()))
    }

    /// The norm of the whole gradient.
    fn grad_norm(&self) -> Result<f64> {
        let params = self.task.objective.model().params().params();
        let grads: Vec<_> = params.iter().filter_map(Param::grad).collect();
        Ok(inplace::sum_of_squares_all(&grads)?.sqrt())
    }

    fn learning_rate(&self) -> f32 {
        let OptimizerConfig::Adamw { lr, .. } = self.recipe.optimizer;
        learning_rate(&self.recipe.schedule, lr, self.state.step, self.recipe.train.steps)
    }

    /// Stops before the weights are touched by what is no number.
    fn check_finite(&mut self, loss: f64, grad_norm: f64) -> Result<()> {
        if loss.is_finite() && grad_norm.is_finite() {
            return Ok(());
        }
        let (what, value) = match loss.is_finite() {
            false => ("the loss".to_owned(), loss),
            true => (format!("the gradient of `{}`", self.first_bad_gradient()), grad_norm),
        };
        let debug = self.dir.map(|dir| dir.path().join(format!("debug-step-{}", self.state.step)));
        if let Some(place) = &debug {
            let objective = self.task.objective.as_ref();
            checkpoint::save_at(self.storage, place, objective, &*self.optimizer, &self.state)?;
        }
        Err(Error::NotFinite { step: self.state.step, what, value, debug })
    }

    fn first_bad_gradient(&self) -> String {
        let is_finite = |grad| inplace::sum_of_squares_all(&[grad]).is_ok_and(f64::is_finite);
        let bad = |p: &&Param| p.grad().is_some_and(|grad| !is_finite(grad));
        let params = self.task.objective.model().params().params();
        params.iter().find(bad).map_or_else(|| "all".to_owned(), |p| p.name().to_owned())
    }

    /// Advances the state by one step and gathers its numbers.
    fn count(
        &mut self,
        batches: &[Batch],
        loss: f64,
        grad_norm: f64,
        lr: f32,
        start: Instant,
    ) -> Metrics {
        let model = self.task.objective.model();
        let n_tokens: usize = batches.iter().map(|b| b.rows * b.len).sum();
        let flops: f64 = batches.iter().map(|b| model.flops_per_step(b.rows, b.len)).sum();
        let n_targets: usize = batches.iter().map(|b| b.n_targets).sum();
        let seconds = start.elapsed().as_secs_f64();
        self.state.step += 1;
        self.state.tokens_seen += n_tokens as u64;
        self.state.targets_seen += n_targets as u64;
        self.state.elapsed_s += seconds;
        Metrics {
            step: self.state.step,
            loss,
            grad_norm,
            lr,
            tokens_per_s: n_tokens as f64 / seconds,
            gflops: flops / seconds / 1e9,
            tokens_seen: self.state.tokens_seen,
            elapsed_s: self.state.elapsed_s,
            eval: None,
        }
    }

    fn evaluate(&mut self) -> Result<Evaluation> {
        let (objective, loader) = (self.task.objective.as_ref(), self.task.validation.as_ref());
        let evaluation = evaluate(objective, loader, self.recipe.eval.batches_max)?;
        self.evaluation = Some(evaluation);
        let step = self.state.step;
        self.observer.event(&Event::Evaluated { step, evaluation: &evaluation });
        Ok(evaluation)
    }

    fn log(&mut self, metrics: &Metrics) -> Result<()> {
        self.observer.event(&Event::Stepped { metrics, steps: self.recipe.train.steps });
        match self.dir {
            Some(dir) => metrics::append(&dir.metrics(), metrics),
            None => Ok(()),
        }
    }

    fn sample(&mut self) -> Result<()> {
        let config = &self.recipe.sample;
        let (step, seed) = (self.state.step, self.recipe.run.seed);
        for prompt in &config.prompts {
            let objective = &self.task.objective;
            let text = objective.sample(prompt, config.max_tokens, config.temperature, seed)?;
            let Some(text) = text else { continue };
            self.observer.event(&Event::Sampled { step, prompt, text: &text });
            if let Some(dir) = self.dir {
                let line = json!({ "step": step, "prompt": prompt, "text": text });
                metrics::append(&dir.samples(), &line)?;
            }
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        if self.saved_step == Some(self.state.step) {
            return Ok(());
        }
        let (objective, keep) = (self.task.objective.as_ref(), self.recipe.checkpoint.keep);
        let path =
            checkpoint::save(self.storage, dir, objective, &*self.optimizer, &self.state, keep)?;
        self.saved_step = Some(self.state.step);
        self.observer.event(&Event::Saved { path: &path });
        Ok(())
    }

    /// Saves what an interrupted run has, and says how the run ended.
    fn finish(mut self) -> Result<Outcome> {
        self.save()?;
        let finished = self.state.step >= self.recipe.train.steps;
        if finished && self.evaluation.is_none() {
            self.evaluate()?;
        }
        Ok(Outcome { state: self.state, finished, evaluation: self.evaluation })
    }
}
