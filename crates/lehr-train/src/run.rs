//! The training loop: [`run`] shows every step of a run in order.
//!
//! The order within a step matters to a resumed run. Metrics are written before the checkpoint, so
//! a crash between them leaves lines beyond the checkpoint, which resuming removes and writes
//! again.

mod step;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lehr_data::Batch;
use lehr_infer::resolve_model;
use lehr_model::io::{Scrutiny, newest_checkpoint};
use lehr_tensor::Param;
use lehr_tensor::inplace::SquaredGradNorm;
use serde_json::json;
pub use step::{Enqueued, StepEnd, StepInputs, StepNumbers, Stepper};

use crate::checkpoint::{self, Base, Contents, Disk, Storage};
use crate::inputs::refuse;
use crate::observe::{Event, Observer};
use crate::recipe::{ModelConfig, SavedWeights};
use crate::{
    Error, Evaluation, Inputs, Metrics, Recipe, Result, RunDir, Task, TrainState, evaluate,
    learning_rate, metrics,
};

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The counters after the last step.
    pub state: TrainState,
    /// Whether all steps were made. If not, `stop` was set.
    pub finished: bool,
    /// The last evaluation, if the run is finished.
    pub evaluation: Option<Evaluation>,
}

/// Trains `task` by `recipe` until its last step or until `stop` is set.
///
/// Starts from the newest intact checkpoint of `dir`, if there is one. Writes nothing without a
/// directory.
///
/// # Errors
/// If the data does not fit the model, memory or disk run out, or the loss is not finite.
pub fn run(
    recipe: &Recipe,
    task: &mut Task,
    dir: Option<&RunDir>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    run_with_storage(recipe, task, dir, &mut Disk, observer, stop)
}

/// Trains as [`run`] does, and writes checkpoints through `storage`.
///
/// # Errors
/// As [`run`].
pub fn run_with_storage(
    recipe: &Recipe,
    task: &mut Task,
    dir: Option<&RunDir>,
    storage: &mut dyn Storage,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let mut session = Session::start(recipe, task, dir, storage, observer)?;
    let steps = recipe.train.steps;
    let mut batches = session.batches_of(session.state.step)?;
    while session.state.step < steps && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let lr = session.learning_rate();
        // A rollout generates the batches with the current weights.
        batches = session.rollout(batches)?;
        let mut next = None;
        let numbers = loop {
            let enqueued = session.enqueue_step(&batches, lr)?;
            // The host reads the next batches while a GPU computes this step.
            if next.is_none() && session.prefetches {
                next = Some(session.batches_of(session.state.step + 1));
            }
            match session.await_step(&enqueued)? {
                StepEnd::Made(numbers) => break numbers,
                // The step changed nothing. It is repeated with a smaller loss scale.
                StepEnd::Overflow => {}
                StepEnd::NotFinite { numbers, n_updated } => {
                    return Err(session.not_finite(&numbers, n_updated)?);
                }
            }
        };
        let mut metrics = session.advance(&batches, numbers, lr, start)?;

        let step = session.state.step;
        if is_due(recipe.eval.every_steps, step, steps) {
            // Evaluated before logging, because the line of the step contains the evaluation.
            metrics.eval = Some(session.evaluate()?);
        }
        session.log(&metrics)?;
        if is_due(recipe.sample.every_steps, step, steps) {
            session.sample()?;
        }
        if is_due(recipe.checkpoint.every_steps, step, steps) {
            session.save()?;
        }
        // An error of the data is raised only here, after the step was logged and saved.
        batches = next.unwrap_or_else(|| session.batches_of(step))?;
    }
    session.finish()
}

/// Returns whether something is due after `step`: every `every` steps, and after the last.
fn is_due(every: u64, step: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}

/// The state of a run and its parts.
struct Session<'a> {
    recipe: &'a Recipe,
    task: &'a mut Task,
    dir: Option<&'a RunDir>,
    storage: &'a mut dyn Storage,
    observer: &'a mut dyn Observer,
    stepper: Stepper,
    state: TrainState,
    /// Whether the next batches are read while a step runs. They are not with a rollout, whose
    /// batches depend on the weights after the step.
    prefetches: bool,
    /// The model that checkpoints refer to, if they hold only trained weights.
    base: Option<Base>,
    saved_step: Option<u64>,
    evaluation: Option<Evaluation>,
}

impl<'a> Session<'a> {
    fn start(
        recipe: &'a Recipe,
        task: &'a mut Task,
        dir: Option<&'a RunDir>,
        storage: &'a mut dyn Storage,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let model = task.objective.model();
        let mut stepper = Stepper::new(&recipe.optimizer, model, recipe.train.cuda_graph)?;
        stepper.optimizer.set_steps(recipe.train.steps);
        let n_params = model.params().n_values();
        let prefetches = task.objective.rollout().is_none();
        let mut session = Self {
            recipe,
            task,
            dir,
            storage,
            observer,
            stepper,
            state: TrainState::default(),
            prefetches,
            base: base(recipe)?,
            saved_step: None,
            evaluation: None,
        };
        session.check_prompts()?;
        session.resume()?;
        // A run may be resumed in another type: a loss scale is kept in f16, dropped otherwise.
        let scale = session.state.loss_scale;
        session.stepper.loss_scale = session.stepper.loss_scale.map(|start| scale.unwrap_or(start));
        session.state.loss_scale = session.stepper.loss_scale;
        let (step, steps) = (session.state.step, recipe.train.steps);
        session.observer.event(&Event::Started { step, steps, n_params });
        Ok(session)
    }

    /// Checks all sample prompts now, because a bad one would end the run at its first sample.
    fn check_prompts(&self) -> Result<()> {
        let prompts = &self.recipe.sample.prompts;
        prompts.iter().try_for_each(|prompt| self.task.objective.check_prompt(prompt))
    }

    /// Restores the newest intact checkpoint and removes the log lines after it.
    fn resume(&mut self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        let observer = &mut *self.observer;
        let mut on_damaged = |path: &Path, error: &lehr_model::Error| {
            observer.event(&Event::Skipped { path, reason: &error.to_string() });
        };
        let newest = newest_checkpoint(dir.path(), Scrutiny::Hashes, &mut on_damaged);
        let inputs = dir.inputs(self.recipe)?.with_objective(self.task.objective.as_ref());
        if let Some((step, path)) = newest {
            self.compare_inputs(dir, checkpoint::read_state(&path)?.inputs, &inputs)?;
            let optimizer = &mut *self.stepper.optimizer;
            self.state = checkpoint::restore(&path, self.task.objective.as_mut(), optimizer)?;
            self.saved_step = Some(step);
        }
        self.state.inputs = Some(inputs);
        metrics::truncate(&dir.metrics(), self.state.step)?;
        metrics::truncate(&dir.samples(), self.state.step)
    }

    /// Compares the inputs of the checkpoint with those of now. Refuses changes, unless the user
    /// accepted them.
    fn compare_inputs(&mut self, dir: &RunDir, saved: Option<Inputs>, now: &Inputs) -> Result<()> {
        let Some(saved) = saved else {
            let text = "the checkpoint does not name its data, so it cannot be compared with the \
                        present data; an earlier version saved it";
            self.observer.event(&Event::Warning { text });
            return Ok(());
        };
        let changes = saved.changes(now);
        refuse(dir, changes.clone())?;
        for change in changes {
            let text = format!("accepted, though changed since the checkpoint: {}", change.text);
            self.observer.event(&Event::Warning { text: &text });
        }
        Ok(())
    }

    /// Reads the micro-batches of a step. There are none after the last step.
    fn batches_of(&self, step: u64) -> Result<Vec<Batch>> {
        let n =
            if step < self.recipe.train.steps { self.recipe.train.grad_accumulation } else { 0 };
        (0..n).map(|i| Ok(self.task.train.batch(step * n + i)?)).collect()
    }

    /// Passes the batches of this step through the objective's rollout, if it has one.
    fn rollout(&mut self, batches: Vec<Batch>) -> Result<Vec<Batch>> {
        let step = self.state.step;
        let Some(rollout) = self.task.objective.rollout() else { return Ok(batches) };
        let made = rollout.batches(batches, step)?;
        made.iter().try_for_each(Batch::validate)?;
        Ok(made)
    }

    fn learning_rate(&self) -> f32 {
        let peak = self.recipe.optimizer.lr;
        learning_rate(&self.recipe.schedule, peak, self.state.step, self.recipe.train.steps)
    }

    fn enqueue_step(&mut self, batches: &[Batch], lr: f32) -> Result<Enqueued> {
        let objective = self.task.objective.as_ref();
        self.stepper.enqueue(StepInputs {
            params: objective.model().params(),
            loss: &|batch, normalizer| objective.loss(batch, normalizer),
            batches,
            number: self.state.step + 1,
            lr,
        })
    }

    fn await_step(&mut self, enqueued: &Enqueued) -> Result<StepEnd> {
        let end = self.stepper.wait(enqueued, self.task.objective.model().params())?;
        self.state.loss_scale = self.stepper.loss_scale;
        Ok(end)
    }

    /// Returns the error of a step whose loss or gradient is not finite, and saves the state for
    /// study. That is the state before the step, except for the `n_updated` parameters that
    /// `optimizer.in_backward` had updated by then. `state.json` then says so.
    fn not_finite(&mut self, numbers: &StepNumbers, n_updated: usize) -> Result<Error> {
        self.state.params_ahead = n_updated;
        let (what, value) = match numbers.loss.is_finite() {
            false => ("the loss".to_owned(), numbers.loss),
            true => (format!("the gradient of `{}`", self.first_bad_gradient()), numbers.grad_norm),
        };
        let debug = self.dir.map(|dir| dir.path().join(format!("debug-step-{}", self.state.step)));
        if let Some(folder) = &debug {
            let contents = contents(self.task, &self.stepper, &self.state, self.base.as_ref());
            checkpoint::save_at(self.storage, folder, &contents)?;
        }
        Ok(Error::NotFinite { step: self.state.step, what, value, n_updated, debug })
    }

    fn first_bad_gradient(&self) -> String {
        let finite = |grad| SquaredGradNorm::of(&[grad], &[])?.get().map(f64::is_finite);
        let is_finite = |grad| finite(grad).unwrap_or(false);
        let bad = |p: &&Param| p.grad().is_some_and(|grad| !is_finite(grad));
        let params = self.task.objective.model().params().params();
        params.iter().find(bad).map_or_else(|| "all".to_owned(), |p| p.name().to_owned())
    }

    /// Advances the state by one step and returns its metrics.
    fn advance(
        &mut self,
        batches: &[Batch],
        numbers: StepNumbers,
        lr: f32,
        start: Instant,
    ) -> Result<Metrics> {
        let model = self.task.objective.model();
        let n_tokens: usize = batches.iter().map(|b| b.batch_size * b.seq_len).sum();
        let flops = |b: &Batch| model.flops_per_step(b.batch_size, b.seq_len);
        let flops: f64 = batches.iter().map(flops).sum();
        let n_targets: usize = batches.iter().map(|b| b.n_targets).sum();
        let seconds = start.elapsed().as_secs_f64();
        self.state.step += 1;
        self.state.tokens_seen += n_tokens as u64;
        self.state.targets_seen += n_targets as u64;
        self.state.elapsed_s += seconds;
        self.task.objective.after_step(self.state.step)?;
        let StepNumbers { loss, grad_norm, metrics } = numbers;
        Ok(Metrics {
            step: self.state.step,
            loss,
            grad_norm,
            lr,
            tokens_per_s: n_tokens as f64 / seconds,
            gflops: flops / seconds / 1e9,
            tokens_seen: self.state.tokens_seen,
            elapsed_s: self.state.elapsed_s,
            metrics,
            eval: None,
        })
    }

    fn evaluate(&mut self) -> Result<Evaluation> {
        let (objective, loader) = (self.task.objective.as_ref(), self.task.validation.as_ref());
        let evaluation = evaluate(objective, loader, self.recipe.eval.batches_max)?;
        let step = self.state.step;
        self.observer.event(&Event::Evaluated { step, evaluation: &evaluation });
        self.evaluation = Some(evaluation.clone());
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
        // Lines up to the checkpoint are not written again after a power cut.
        metrics::sync(&dir.metrics())?;
        metrics::sync(&dir.samples())?;
        self.storage.sync_dir(dir.path()).map_err(Error::io("syncing", dir.path()))?;
        let contents = contents(self.task, &self.stepper, &self.state, self.base.as_ref());
        let path = checkpoint::save(self.storage, dir, &contents, self.recipe.checkpoint.keep)?;
        self.saved_step = Some(self.state.step);
        self.observer.event(&Event::Saved { path: &path });
        Ok(())
    }

    /// Saves the last state and returns how the run ended. A run that was stopped before its first
    /// step has nothing to save.
    fn finish(mut self) -> Result<Outcome> {
        let finished = self.state.step >= self.recipe.train.steps;
        if finished || self.state.step > 0 {
            self.save()?;
        }
        if finished && self.evaluation.is_none() {
            self.evaluate()?;
        }
        Ok(Outcome { state: self.state, finished, evaluation: self.evaluation })
    }
}

/// Gathers the contents of a checkpoint of the current state.
fn contents<'a>(
    task: &'a Task,
    stepper: &'a Stepper,
    state: &'a TrainState,
    base: Option<&'a Base>,
) -> Contents<'a> {
    Contents { objective: task.objective.as_ref(), optimizer: &*stepper.optimizer, state, base }
}

/// Opens the model that checkpoints refer to, if they hold only trained weights.
fn base(recipe: &Recipe) -> Result<Option<Base>> {
    match (recipe.checkpoint.weights, &recipe.model) {
        (SavedWeights::Trained, ModelConfig::Load { path }) => {
            Ok(Some(Base::open(&resolve_model(Path::new(path))?)?))
        }
        _ => Ok(None),
    }
}
