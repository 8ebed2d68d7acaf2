//! The training loop: [`run`] shows every step of a run in order.
//!
//! The order within a step matters to a resumed run. Metrics are written before the checkpoint, so
//! a crash between them leaves lines beyond the checkpoint, which resuming removes and writes
//! again.

mod guard;
mod journal;
mod look;
mod resume;
mod step;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use journal::Journal;
use lehr_data::Batch;
use lehr_infer::resolve_model;
use lehr_tensor::{Device, arena, cuda};
pub use step::{Enqueued, StepEnd, StepInputs, StepNumbers, Stepper};

use crate::average::Average;
use crate::checkpoint::{self, Base, Disk, Storage};
use crate::observe::{Event, Observer, Shared};
use crate::recipe::{ModelConfig, SavedWeights};
use crate::schedule::{Stages, learning_rate_of};
use crate::watchdog::Watchdog;
use crate::watchdog::stall::{Phase, Pulse, Stall};
use crate::{
    Evaluation, Metrics, Recipe, Result, RunDir, Task, TrainState, WatchdogEvent, WatchdogKind,
    metrics,
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
/// If the data does not fit the model, memory or disk run out, the loss is not finite, or the
/// watchdog gives up.
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
    let observer = Shared::new(observer);
    let report = |stall: &Stall| report_stall(stall, dir, &observer);
    let pulse = Pulse::new();
    pulse.watch(recipe.watchdog.stall_seconds, report, || {
        let files = Files { dir, storage };
        let session = Session::start(recipe, task, files, (&observer, &pulse))?;
        train(session, stop)
    })
}

/// Reports a stall. Its line is lost if it cannot be written, and then the run fails later.
fn report_stall(stall: &Stall, dir: Option<&RunDir>, observer: &Shared<'_>) {
    let Stall { step, attempt, reason } = stall.clone();
    let event = WatchdogKind::Stalled;
    let event = WatchdogEvent { step, attempt, event, reason, loss: None, to_step: None };
    if let Some(dir) = dir {
        let _ = metrics::append(&dir.metrics(), &event);
    }
    observer.event(&Event::Watchdog { event: &event });
}

/// Makes all steps.
fn train(mut session: Session<'_>, stop: &AtomicBool) -> Result<Outcome> {
    let recipe = session.recipe;
    let steps = recipe.train.steps;
    let mut batches = session.batches_of(session.state.step)?;
    while session.state.step < steps && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let lr = session.learning_rate();
        // A rollout generates the batches with the current weights.
        batches = session.rollout(batches)?;
        let mut next = None;
        let (numbers, n_updated) = loop {
            let enqueued = session.enqueue_step(&batches, lr)?;
            // The host reads the next batches while a GPU computes this step.
            if next.is_none() && session.prefetches {
                next = Some(session.batches_of(session.state.step + 1));
            }
            match session.await_step(&enqueued)? {
                StepEnd::Made(numbers) => break (numbers, None),
                // The step changed nothing. It is repeated with a smaller loss scale.
                StepEnd::Overflow => {}
                StepEnd::NotFinite { numbers, n_updated } => break (numbers, Some(n_updated)),
            }
        };
        let Some(numbers) = session.judge(numbers, n_updated)? else {
            // The run returned to a checkpoint.
            batches = session.batches_of(session.state.step)?;
            continue;
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

/// Where a run writes its files.
struct Files<'a> {
    dir: Option<&'a RunDir>,
    storage: &'a mut dyn Storage,
}

/// The state of a run and its parts.
struct Session<'a> {
    recipe: &'a Recipe,
    task: &'a mut Task,
    dir: Option<&'a RunDir>,
    storage: &'a mut dyn Storage,
    observer: &'a Shared<'a>,
    pulse: &'a Pulse,
    watchdog: Watchdog,
    journal: Journal<'a>,
    stepper: Stepper,
    stages: Stages,
    average: Average,
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
        Files { dir, storage }: Files<'a>,
        (observer, pulse): (&'a Shared<'a>, &'a Pulse),
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
            pulse,
            watchdog: Watchdog(recipe.watchdog),
            journal: Journal::default(),
            stepper,
            stages: Stages::new(&recipe.train),
            average: Average::new(recipe.average, recipe.train.steps),
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
        session.pulse.made(session.state.step, session.state.attempt());
        session.prepare_watchdog()?;
        let (step, steps) = (session.state.step, recipe.train.steps);
        session.observer.event(&Event::Started { step, steps, n_params });
        Ok(session)
    }

    /// Reads the micro-batches of a step. There are none after the last step. Steps that were
    /// undone have used up the batches before.
    fn batches_of(&self, step: u64) -> Result<Vec<Batch>> {
        self.pulse.enter(Phase::Reading);
        if step >= self.recipe.train.steps {
            return Ok(Vec::new());
        }
        let loader = self.task.train.as_ref();
        let spans = self.stages.spans(step + self.state.watchdog.n_undone, loader).into_iter();
        spans.map(|span| Ok(loader.rows(span)?)).collect()
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
        learning_rate_of(self.recipe, &self.stages, self.state.step)
    }

    fn enqueue_step(&mut self, batches: &[Batch], lr: f32) -> Result<Enqueued> {
        self.pulse.enter(Phase::Computing);
        self.stepper.loss_limit = self.watchdog.update_limit(&self.state.watchdog);
        let objective = self.task.objective.as_ref();
        self.stepper.enqueue(StepInputs {
            params: objective.model().params(),
            loss: &|batch, normalizer| objective.loss(batch, normalizer),
            batches,
            // Skipped steps are no updates.
            number: self.state.step + 1 - self.state.watchdog.n_skipped,
            lr,
        })
    }

    fn await_step(&mut self, enqueued: &Enqueued) -> Result<StepEnd> {
        self.pulse.enter(Phase::Computing);
        let end = self.stepper.wait(enqueued, self.task.objective.model().params())?;
        self.state.loss_scale = self.stepper.loss_scale;
        Ok(end)
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
        self.state.targets_seen += if numbers.skipped { 0 } else { n_targets as u64 };
        self.state.elapsed_s += seconds;
        self.task.objective.after_step(self.state.step)?;
        self.average.after_step(self.task.objective.model().params(), self.state.step)?;
        if self.rollback_step() == Some(self.state.step) {
            self.state.watchdog.in_row = 0;
        }
        self.pulse.made(self.state.step, self.state.attempt());
        let StepNumbers { loss, grad_norm, metrics, skipped } = numbers;
        Ok(Metrics {
            step: self.state.step,
            loss,
            grad_norm,
            lr,
            tokens_per_s: n_tokens as f64 / seconds,
            gflops: flops / seconds / 1e9,
            tokens_seen: self.state.tokens_seen,
            elapsed_s: self.state.elapsed_s,
            memory_bytes: memory_bytes(self.task.objective.model().compute().0)?,
            skipped,
            metrics: metrics.into_iter().filter(|(_, value)| value.is_finite()).collect(),
            eval: None,
        })
    }

    fn log(&mut self, metrics: &Metrics) -> Result<()> {
        self.observer.event(&Event::Stepped { metrics, steps: self.recipe.train.steps });
        self.journal.step(metrics)
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
        if finished {
            // The caller gets the model that was evaluated and saved.
            self.average.put_in(self.task.objective.model().params())?;
        }
        Ok(Outcome { state: self.state, finished, evaluation: self.evaluation })
    }
}

/// Opens the model that checkpoints refer to, if they hold only trained weights.
fn base(recipe: &Recipe) -> Result<Option<Base>> {
    let trained = recipe.checkpoint.weights == SavedWeights::Trained || !recipe.adapter.is_none();
    match (trained, &recipe.model) {
        (true, ModelConfig::Load { path }) => {
            Ok(Some(Base::open(&resolve_model(Path::new(path))?)?))
        }
        _ => Ok(None),
    }
}

/// Returns the bytes of a device's memory that are reserved for tensors.
pub(crate) fn memory_bytes(device: Device) -> Result<u64> {
    Ok(match device {
        Device::Cpu => arena::stats(),
        Device::Cuda(ordinal) => cuda::arena_stats(ordinal)?,
    }
    .high_water_bytes as u64)
}
