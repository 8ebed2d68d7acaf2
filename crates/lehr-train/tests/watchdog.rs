//! The watchdog of a run: loss spikes and steps that are not finite are reported, skipped or rolled
//! back, and an interrupted run decides as an uninterrupted one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Watch, checkpoint_bytes, gpt2, prepared, recipe, weights};
use lehr_data::{Batch, Loader};
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_tensor::cuda;
use lehr_train::recipe::{ObjectiveKind, WatchdogAction};
use lehr_train::{
    Error, Recipe, RunDir, Task, WatchdogEvent, WatchdogKind, read_metrics, read_watchdog_events,
    run, write_report,
};

const STEPS: u64 = 24;
/// Index of the first batch that is broken, after enough steps for a median.
const BROKEN: u64 = 13;

/// Batches of `inner`. A few have targets that contradict all others.
struct Broken {
    inner: Box<dyn Loader>,
    broken: std::ops::Range<u64>,
}

impl Loader for Broken {
    fn batches_per_epoch(&self) -> u64 {
        self.inner.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> lehr_data::Result<Batch> {
        let mut batch = self.inner.batch(index)?;
        if self.broken.contains(&index) {
            // Ids of bytes that the text does not have.
            batch.targets.iter_mut().filter(|t| **t >= 0).for_each(|target| *target = 1);
        }
        Ok(batch)
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn seq_len(&self) -> usize {
        self.inner.seq_len()
    }
}

fn watched(dir: &Path, action: WatchdogAction) -> Recipe {
    let mut recipe = recipe(dir, gpt2(32), ObjectiveKind::NextToken);
    recipe.run.dir = dir.join(format!("{action}")).display().to_string();
    recipe.train.steps = STEPS;
    recipe.checkpoint.every_steps = 4;
    recipe.watchdog.action = action;
    // The losses of these few steps fall quickly, so their deviation is large.
    (recipe.watchdog.window, recipe.watchdog.threshold) = (16, 1.2);
    recipe
}

fn task(recipe: &Recipe, broken: std::ops::Range<u64>) -> Task {
    let mut task = prepared(recipe);
    task.train = Box::new(Broken { inner: task.train, broken });
    task
}

/// Runs a recipe with broken batches in its directory, or continues it.
fn run_broken(
    recipe: &Recipe,
    broken: std::ops::Range<u64>,
    stop_after: Option<u64>,
) -> (Task, Watch) {
    let (mut task, dir) = (task(recipe, broken), RunDir::open(recipe).unwrap());
    let mut watch = Watch { stop_after, ..Watch::default() };
    let stop = Arc::clone(&watch.stop);
    run(recipe, &mut task, Some(&dir), &mut watch, &stop).unwrap();
    (task, watch)
}

fn broken() -> std::ops::Range<u64> {
    BROKEN..BROKEN + 2
}

fn lines(recipe: &Recipe) -> Vec<(u64, u64, bool)> {
    let metrics = read_metrics(&recipe.dir().join("metrics.jsonl")).unwrap();
    metrics.iter().map(|m| (m.step, m.loss.to_bits(), m.skipped)).collect()
}

fn events(recipe: &Recipe) -> Vec<WatchdogEvent> {
    read_watchdog_events(&recipe.dir().join("metrics.jsonl")).unwrap()
}

#[test]
fn off_and_warn_change_no_bit_and_warn_names_the_spike() {
    let scratch = tempfile::tempdir().unwrap();
    let off = watched(scratch.path(), WatchdogAction::Off);
    let (off_task, off_watch) = run_broken(&off, broken(), None);
    let warn = watched(scratch.path(), WatchdogAction::Warn);
    let (warn_task, warn_watch) = run_broken(&warn, broken(), None);
    assert!(weights(&off_task) == weights(&warn_task));
    assert_eq!(off_watch.losses(), warn_watch.losses());
    assert!(off_watch.events.is_empty() && events(&off).is_empty());
    let state = off.dir().join(format!("checkpoints/step-{STEPS}/state.json"));
    assert!(!std::fs::read_to_string(state).unwrap().contains("watchdog"));
    // The second of two broken steps belongs to the same spike.
    let [event] = &warn_watch.events[..] else { panic!("{:?}", warn_watch.events) };
    assert_eq!((event.step, event.event), (BROKEN + 1, WatchdogKind::Spike));
    assert_eq!(events(&warn), warn_watch.events);
    assert!(event.text().contains("the median of the last"), "{}", event.text());
}

#[test]
fn skipped_steps_leave_the_weights_as_they_were() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = watched(scratch.path(), WatchdogAction::Skip);
    let before = run_broken(&recipe, broken(), Some(BROKEN)).0;
    let after = run_broken(&recipe, broken(), Some(BROKEN + 2)).0;
    assert!(weights(&before) == weights(&after), "a skipped step changed a weight");
    let skipped: Vec<_> = events(&recipe).iter().map(|e| (e.step, e.event)).collect();
    let want = [BROKEN + 1, BROKEN + 2].map(|step| (step, WatchdogKind::Skipped));
    assert_eq!(skipped, want);
    let (task, watch) = run_broken(&recipe, broken(), None);
    assert!(watch.events.is_empty() && watch.losses().iter().all(|loss| loss.is_finite()));
    assert!(weights(&task) != weights(&after));
    // Without the skips the broken batches change what follows.
    let warn = watched(scratch.path(), WatchdogAction::Warn);
    run_broken(&warn, broken(), None);
    let loss = |recipe: &Recipe| f64::from_bits(lines(recipe)[BROKEN as usize + 2].1);
    assert!((loss(&recipe) - loss(&warn)).abs() > 1e-3, "{} {}", loss(&recipe), loss(&warn));
}

#[test]
fn a_rollback_returns_to_the_last_checkpoint_and_passes_over_the_batches_since() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = watched(scratch.path(), WatchdogAction::Rollback);
    let (task, watch) = run_broken(&recipe, BROKEN..BROKEN + 1, None);
    let [event] = &watch.events[..] else { panic!("{:?}", watch.events) };
    let (to, spike) = (BROKEN / 4 * 4, BROKEN + 1);
    assert_eq!((event.step, event.event), (spike, WatchdogKind::RolledBack));
    assert_eq!((event.attempt, event.to_step), (spike, Some(to)));
    // Each step once, and the losses of the steps that were undone are gone.
    let steps: Vec<u64> = lines(&recipe).iter().map(|line| line.0).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
    assert!(watch.losses().iter().all(|loss| loss.is_finite()));
    assert_eq!(events(&recipe), watch.events);

    // The same as a run whose batches after the checkpoint begin later.
    let later = Recipe { watchdog: Recipe::base().watchdog, ..recipe };
    let mut other = prepared(&later);
    other.train = Box::new(Later { inner: other.train, from: to, by: spike - to });
    run(&later, &mut other, None, &mut Watch::default(), &Default::default()).unwrap();
    assert!(weights(&task) == weights(&other));
}

/// Batches of `inner` without some of them.
struct Later {
    inner: Box<dyn Loader>,
    from: u64,
    by: u64,
}

impl Loader for Later {
    fn batches_per_epoch(&self) -> u64 {
        self.inner.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> lehr_data::Result<Batch> {
        self.inner.batch(if index < self.from { index } else { index + self.by })
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn seq_len(&self) -> usize {
        self.inner.seq_len()
    }
}

#[test]
fn interrupted_runs_skip_and_roll_back_as_the_whole_one() {
    for action in [WatchdogAction::Warn, WatchdogAction::Skip, WatchdogAction::Rollback] {
        let scratch = tempfile::tempdir().unwrap();
        let mut recipe = watched(scratch.path(), action);
        recipe.checkpoint.keep = 1;
        recipe.sample.prompts = vec!["After 7 days".to_owned()];
        recipe.sample.every_steps = 5;
        let whole = Recipe { run: in_dir(&recipe, scratch.path(), "whole"), ..recipe.clone() };
        let (_, watch) = run_broken(&whole, broken(), None);
        assert!(!watch.events.is_empty());
        let samples =
            |recipe: &Recipe| std::fs::read_to_string(recipe.dir().join("samples.jsonl")).unwrap();
        // Each moment around the spike; also twice between two checkpoints.
        for stops in [vec![1], vec![2, 3], vec![11], vec![13], vec![14], vec![13, 14, 15], vec![17]]
        {
            let name = format!("parts-{stops:?}");
            let parts = Recipe { run: in_dir(&recipe, scratch.path(), &name), ..recipe.clone() };
            let mut told = Vec::new();
            for stop in stops.iter().copied().map(Some).chain([None]) {
                told.extend(run_broken(&parts, broken(), stop).1.events);
            }
            assert!(
                checkpoint_bytes(&parts, STEPS) == checkpoint_bytes(&whole, STEPS),
                "{action}: weights or moments differ, stopped after {stops:?}"
            );
            assert_eq!(lines(&parts), lines(&whole), "{action} {stops:?}");
            assert_eq!(events(&parts), events(&whole), "{action} {stops:?}");
            assert_eq!(samples(&parts), samples(&whole), "{action} {stops:?}");
            assert_eq!(told, watch.events, "{action} {stops:?}");
        }
    }
}

fn in_dir(recipe: &Recipe, dir: &Path, name: &str) -> lehr_train::recipe::RunConfig {
    let dir = dir.join(name).display().to_string();
    lehr_train::recipe::RunConfig { dir, ..recipe.run.clone() }
}

/// A crash between two checkpoints: what was written after the last one is still there.
#[test]
fn a_run_that_crashed_after_a_rollback_rolls_back_again() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = watched(scratch.path(), WatchdogAction::Rollback);
    let whole = Recipe { run: in_dir(&recipe, scratch.path(), "whole"), ..recipe.clone() };
    run_broken(&whole, broken(), None);
    let crashed = Recipe { run: in_dir(&recipe, scratch.path(), "crashed"), ..recipe.clone() };
    run_broken(&crashed, broken(), Some(14));
    let last = crashed.dir().join("checkpoints/step-14");
    // Both broken batches, one after the other.
    assert_eq!(events(&crashed).len(), 2);
    std::fs::remove_dir_all(last).unwrap();
    let (_, watch) = run_broken(&crashed, broken(), None);
    assert_eq!((watch.started, watch.events.len()), (Some(12), 2));
    assert!(checkpoint_bytes(&crashed, STEPS) == checkpoint_bytes(&whole, STEPS));
    assert_eq!((lines(&crashed), events(&crashed)), (lines(&whole), events(&whole)));
}

#[test]
fn a_learning_rate_that_diverges_ends_with_an_error_after_some_rollbacks() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = watched(scratch.path(), WatchdogAction::Rollback);
    (recipe.optimizer.lr, recipe.watchdog.in_row_max) = (3.0, 2);
    recipe.optimizer.clip_norm = 0.0;
    recipe.schedule =
        lehr_train::recipe::ScheduleConfig::Cosine { warmup_steps: 20, min_ratio: 1.0 };
    (recipe.watchdog.window, recipe.watchdog.threshold) = (8, 4.0);
    let (mut task, dir) = (prepared(&recipe), RunDir::open(&recipe).unwrap());
    let mut watch = Watch::default();
    let failed = run(&recipe, &mut task, Some(&dir), &mut watch, &Default::default());
    let error = failed.err().unwrap();
    let (text, hint) = (error.to_string(), error.hint().unwrap());
    assert!(matches!(error, Error::Diverged { in_row: 2, .. }), "{text}");
    assert!(text.contains("after 2 skips or rollbacks in a row"), "{text}");
    assert!(hint.contains("optimizer.lr") && hint.contains("debug-step"), "{hint}");
    assert_eq!(watch.events.len(), 2, "{:?}", watch.events);
    // The weights are finite, and so is what was saved.
    assert!(
        weights(&task).iter().all(|(_, bits)| bits.iter().all(|b| f32::from_bits(*b).is_finite()))
    );
}

#[test]
fn the_report_lists_what_the_watchdog_did_and_what_was_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = watched(scratch.path(), WatchdogAction::Skip);
    run_broken(&recipe, broken(), None);
    let dir = RunDir::open(&recipe).unwrap();
    write_report(&dir, &recipe).unwrap();
    let html = std::fs::read_to_string(dir.report()).unwrap();
    for part in ["Watchdog", "step 14 skipped: the loss", "Measured", "tokens per second"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("redicted"), "nothing was predicted");
    std::fs::write(dir.prediction(), "{\"seconds\": 60.0, \"tokens_per_s\": 1000.0}").unwrap();
    write_report(&dir, &recipe).unwrap();
    let html = std::fs::read_to_string(dir.report()).unwrap();
    assert!(html.contains("Predicted and measured") && html.contains(">60.00<"), "{html}");
}

#[test]
fn actions_that_cannot_work_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let check = |action, change: &dyn Fn(&mut Recipe), says: &str| {
        let mut recipe = watched(scratch.path(), action);
        change(&mut recipe);
        let error = recipe.validate().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let in_backward = |recipe: &mut Recipe| {
        (recipe.optimizer.in_backward, recipe.optimizer.clip_norm) = (true, 0.0);
    };
    check(WatchdogAction::Skip, &in_backward, "watchdog.action is skip");
    check(WatchdogAction::Skip, &|r| r.train.cuda_graph = true, "watchdog.action is skip");
    let without = |recipe: &mut Recipe| recipe.checkpoint.every_steps = 0;
    check(WatchdogAction::Rollback, &without, "checkpoint.every_steps of at least 1");
    check(WatchdogAction::Warn, &|r| r.watchdog.window = 2, "watchdog.window is 2");
    check(WatchdogAction::Warn, &|r| r.watchdog.threshold = f64::NAN, "watchdog.threshold is NaN");
    // A rollback needs checkpoints.
    let recipe = watched(scratch.path(), WatchdogAction::Rollback);
    let mut task = prepared(&recipe);
    let failed = run(&recipe, &mut task, None, &mut Watch::default(), &Default::default());
    assert!(failed.err().unwrap().to_string().contains("has no directory"));
}

/// On a GPU the host does not wait for a step by itself, and in f16 the loss has a factor.
#[test]
fn gpu_spikes_are_skipped_and_rolled_back_as_on_the_cpu() {
    cuda::use_emulator();
    for dtype in [DTypeChoice::F32, DTypeChoice::F16] {
        for action in [WatchdogAction::Skip, WatchdogAction::Rollback] {
            let scratch = tempfile::tempdir().unwrap();
            let cpu = watched(scratch.path(), action);
            let (_, want) = run_broken(&cpu, broken(), None);
            let mut gpu = Recipe { run: in_dir(&cpu, scratch.path(), "gpu"), ..cpu };
            (gpu.run.device, gpu.run.dtype) = (DeviceChoice::Cuda(0), dtype);
            let before = run_broken(&gpu, broken(), Some(BROKEN)).0;
            let (after, watch) = run_broken(&gpu, broken(), Some(BROKEN + 1));
            if action == WatchdogAction::Skip {
                assert!(weights(&before) == weights(&after), "{dtype}: a skipped step counts");
            }
            let rest = run_broken(&gpu, broken(), None).1;
            let steps = |events: &[WatchdogEvent]| -> Vec<_> {
                events.iter().map(|e| (e.step, e.attempt, e.event, e.to_step)).collect()
            };
            let told = [steps(&watch.events), steps(&rest.events)].concat();
            assert_eq!(told, steps(&want.events), "{dtype} {action}");
            assert!(rest.losses().iter().all(|loss| loss.is_finite()), "{dtype} {action}");
        }
    }
}
