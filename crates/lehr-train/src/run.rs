//! The training loop.

mod step;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lehr_data::Batch;
use lehr_tensor::cuda::OneLaunch;
use lehr_tensor::{DType, Device};
use serde_json::json;

use crate::checkpoint::{self, Disk, Storage};
use crate::observe::{Event, Observer};
use crate::optim::{self, Optimizer};
use crate::recipe::OptimizerConfig;
use crate::{
    Evaluation, LossScale, Metrics, Recipe, Result, RunDir, Task, TrainState, evaluate,
    learning_rate, metrics,
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
    let mut batches = session.batches_of(session.state.step)?;
    while session.state.step < steps && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let lr = session.learning_rate();
        let launched = session.launch_step(&batches, lr)?;
        // A GPU is busy with this step while the host prepares the next.
        let next = session.batches_of(session.state.step + 1);
        let (loss, grad_norm) = session.finish_step(launched, &batches, lr)?;
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
        // Data that cannot be read must not cost the step that was made.
        batches = next?;
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
    /// If steps are recorded as CUDA graphs, and whether one has been made without.
    one_launch: Option<OneLaunch>,
    has_launched: bool,
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
            one_launch: None,
            has_launched: false,
            saved_step: None,
            evaluation: None,
        };
        session.check_prompts()?;
        session.resume()?;
        let scales = task.objective.model().compute().1 == DType::F16;
        let scale = session.state.loss_scale.unwrap_or(LossScale::START);
        session.state.loss_scale = scales.then_some(scale);
        if let (Device::Cuda(ordinal), true) =
            (task.objective.model().compute().0, recipe.train.cuda_graph)
        {
            session.one_launch = Some(OneLaunch::new(ordinal)?);
        }
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

    /// The micro-batches of a step, none after the last.
    fn batches_of(&self, step: u64) -> Result<Vec<Batch>> {
        let n = if step < self.recipe.train.steps { self.recipe.train.accumulation } else { 0 };
        (0..n).map(|i| Ok(self.task.train.batch(step * n + i)?)).collect()
    }

    fn learning_rate(&self) -> f32 {
        let OptimizerConfig::Adamw { lr, .. } = self.recipe.optimizer;
        learning_rate(&self.recipe.schedule, lr, self.state.step, self.recipe.train.steps)
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
