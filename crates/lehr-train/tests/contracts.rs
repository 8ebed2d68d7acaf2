//! What an objective may have besides a model and a loss: a second model that is frozen, a state
//! that checkpoints keep, named numbers, and batches it makes itself between steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Watch, checkpoint_bytes, gpt2, llama, prepared, recipe};
use lehr_data::Batch;
use lehr_model::{Config, Model, TokenRows, Tokens};
use lehr_tensor::{Shape, Tensor, no_grad};
use lehr_tokenizer::Tokenizer;
use lehr_train::recipe::ObjectiveKind;
use lehr_train::{
    Loss, Objective, ObjectiveState, Recipe, Result, Rollout, RunDir, Task, next_token_loss,
    read_metrics, run,
};
use serde_json::{Value, json};

fn tokens(batch: &Batch) -> Tokens {
    Tokens::packed(&TokenRows {
        ids: &batch.tokens,
        positions: &batch.positions,
        block_positions: None,
        segment_starts: &batch.segment_starts,
        prefix_lens: None,
        batch_size: batch.batch_size,
        seq_len: batch.seq_len,
    })
    .unwrap()
}

/// Learns the next token and the hidden states of a teacher that is not trained, and keeps a moving
/// average of the model's head.
struct Distil {
    student: Model,
    teacher: Model,
    tokenizer: Tokenizer,
    /// Average of the embedding, and the weight of the last value in it.
    average: Tensor,
    rate: f32,
    n_updates: u64,
}

impl Distil {
    const NAME: &str = "average.embedding";

    fn embedding(&self) -> Tensor {
        self.student.params().params()[0].to_host().unwrap()
    }
}

impl Objective for Distil {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        let next = next_token_loss(&self.student, batch, normalizer)?.value;
        let want = no_grad(|| self.teacher.hidden(&tokens(batch)))?;
        // The dot product with the teacher's direction, to be maximised.
        let near = self.student.hidden(&tokens(batch))?.mul(&want)?.sum()?;
        let size = (batch.batch_size * batch.seq_len) as f32;
        let near = near.scale(-0.01 / size * (batch.n_targets as f32 / normalizer))?;
        let loss = next.add(&near)?;
        Ok(Loss::new(loss).with_metric("next", &next).with_metric("near", &near))
    }

    fn model(&self) -> &Model {
        &self.student
    }

    fn frozen_models(&self) -> Vec<&Model> {
        vec![&self.teacher]
    }

    fn after_step(&mut self, _: u64) -> Result<()> {
        let (now, rate) = (self.embedding(), self.rate);
        let mean = |(a, x): (&f32, &f32)| a + rate * (x - a);
        let mean: Vec<f32> = self.average.data().iter().zip(now.data()).map(mean).collect();
        self.average = Tensor::from_slice(&mean, now.shape())?;
        self.n_updates += 1;
        Ok(())
    }

    fn state(&self) -> Result<Option<ObjectiveState>> {
        let tensors = vec![(Self::NAME.to_owned(), self.average.clone())];
        Ok(Some(ObjectiveState { tensors, values: json!({ "n_updates": self.n_updates }) }))
    }

    fn restore(
        &mut self,
        load: &dyn Fn(&str, Shape) -> Result<Tensor>,
        values: &Value,
    ) -> Result<()> {
        self.average = load(Self::NAME, self.average.shape())?;
        self.n_updates = values["n_updates"].as_u64().unwrap();
        Ok(())
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> Value {
        self.student.config().to_json()
    }
}

/// A copy of a model of the same configuration, with weights of another seed.
fn sibling(model: &Model, seed: u64) -> Model {
    Model::new(Config::from_json(&model.config().to_json()).unwrap(), seed).unwrap()
}

fn distillation(recipe: &Recipe) -> Task {
    let mut task = prepared(recipe);
    let student = sibling(task.objective.model(), recipe.run.seed);
    let teacher = sibling(&student, 77);
    let tokenizer = task.objective.tokenizer().clone();
    // A copy of its own: a parameter that somebody else looks at cannot be updated in place.
    let first = &student.params().params()[0];
    let average = Tensor::from_slice(&first.tensor().to_vec(), first.shape()).unwrap();
    let (rate, n_updates) = (0.25, 0);
    task.objective = Box::new(Distil { student, teacher, tokenizer, average, rate, n_updates });
    task
}

fn run_task(recipe: &Recipe, task: &mut Task, stop_after: Option<u64>) -> Watch {
    let mut watch = Watch { stop_after, ..Watch::default() };
    let stop = Arc::clone(&watch.stop);
    run(recipe, task, Some(&RunDir::open(recipe).unwrap()), &mut watch, &stop).unwrap();
    watch
}

fn in_dir(recipe: &Recipe, name: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.run.dir = recipe.dir().with_file_name(name).display().to_string();
    recipe
}

fn objective_files(recipe: &Recipe, step: u64) -> [Vec<u8>; 2] {
    let dir = recipe.dir().join(format!("checkpoints/step-{step}"));
    ["objective.safetensors", "objective.json"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

#[test]
fn an_objective_with_a_teacher_and_a_state_resumes_bit_for_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    recipe.train.grad_accumulation = 2;
    recipe.eval.every_steps = 3;
    let whole = in_dir(&recipe, "whole");
    let mut task = distillation(&whole);
    let teacher: Vec<_> = task.objective.frozen_models()[0].params().params().to_vec();
    let before: Vec<_> = teacher.iter().map(|p| p.to_host().unwrap().to_vec()).collect();
    run_task(&whole, &mut task, None);
    let after: Vec<_> = teacher.iter().map(|p| p.to_host().unwrap().to_vec()).collect();
    assert!(before == after, "the teacher has changed");
    assert!(teacher.iter().all(|p| p.grad().is_none()), "the teacher has gradients");
    for k in [1, 2, 5] {
        let parts = in_dir(&recipe, &format!("stopped-{k}"));
        run_task(&parts, &mut distillation(&parts), Some(k));
        let resumed = run_task(&parts, &mut distillation(&parts), None);
        assert_eq!(resumed.started, Some(k));
        assert!(checkpoint_bytes(&parts, 6) == checkpoint_bytes(&whole, 6), "stopped at {k}");
        assert!(objective_files(&parts, 6) == objective_files(&whole, 6), "stopped at {k}");
    }
    // What is kept is not what the model has now.
    let values: Value = serde_json::from_slice(&objective_files(&whole, 6)[1]).unwrap();
    assert_eq!(values["n_updates"], 6);
}

#[test]
fn named_numbers_reach_metrics_evaluations_and_the_report() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), gpt2(32), ObjectiveKind::NextToken);
    recipe.train.grad_accumulation = 2;
    recipe.eval.every_steps = 2;
    run_task(&recipe, &mut distillation(&recipe), None);
    let dir = RunDir::open(&recipe).unwrap();
    let metrics = read_metrics(&dir.metrics()).unwrap();
    assert_eq!(metrics.len(), 6);
    for m in &metrics {
        let sum = m.metrics["next"] + m.metrics["near"];
        assert!((sum - m.loss).abs() < 1e-5, "{m:?}");
        assert!(m.metrics["near"] != 0.0, "{m:?}");
    }
    let evaluation = metrics[3].eval.as_ref().unwrap();
    let sum = evaluation.metrics["next"] + evaluation.metrics["near"];
    assert!((sum - evaluation.loss).abs() < 1e-5, "{evaluation:?}");
    lehr_train::write_report(&dir, &recipe).unwrap();
    let report = std::fs::read_to_string(dir.report()).unwrap();
    assert!(report.contains("near") && report.contains("mean per target"));
}

/// Learns to repeat what it says itself: the targets of a step are the model's own best tokens.
struct Echo {
    inner: Box<dyn Objective>,
    /// Steps at which batches were made, and their first target.
    made: Arc<Mutex<Vec<(u64, i32)>>>,
}

impl Rollout for Echo {
    fn batches(&mut self, batches: Vec<Batch>, step: u64) -> Result<Vec<Batch>> {
        let answer = |mut batch: Batch| -> Result<Batch> {
            let model = self.inner.model();
            let logits = no_grad(|| model.logits(&model.hidden(&tokens(&batch))?))?;
            let best = lehr_tensor::inplace::argmax(&logits)?.to_host()?;
            batch.targets = best.ids().to_vec();
            batch.n_targets = batch.targets.len();
            Ok(batch)
        };
        let batches: Vec<_> = batches.into_iter().map(answer).collect::<Result<_>>()?;
        self.made.lock().unwrap().push((step, batches[0].targets[0]));
        Ok(batches)
    }
}

impl Objective for Echo {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        self.inner.loss(batch, normalizer)
    }

    fn model(&self) -> &Model {
        self.inner.model()
    }

    fn rollout(&mut self) -> Option<&mut dyn Rollout> {
        Some(self)
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.inner.tokenizer()
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> Value {
        self.inner.config_json()
    }
}

/// A loader that notes which batches it was asked for.
struct Noted {
    inner: Box<dyn lehr_data::Loader>,
    made: Arc<Mutex<Vec<(u64, i32)>>>,
    /// Batch index, and how many rollouts there had been.
    asked: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl lehr_data::Loader for Noted {
    fn batches_per_epoch(&self) -> u64 {
        self.inner.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> lehr_data::Result<Batch> {
        self.asked.lock().unwrap().push((index, self.made.lock().unwrap().len()));
        self.inner.batch(index)
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn seq_len(&self) -> usize {
        self.inner.seq_len()
    }
}

type Notes = Arc<Mutex<Vec<(u64, i32)>>>;
type Asked = Arc<Mutex<Vec<(u64, usize)>>>;

fn echo(recipe: &Recipe) -> (Task, Notes, Asked) {
    let Task { objective, train, validation } = prepared(recipe);
    let (made, asked) = (Notes::default(), Arc::default());
    let objective = Box::new(Echo { inner: objective, made: Arc::clone(&made) });
    let train =
        Box::new(Noted { inner: train, made: Arc::clone(&made), asked: Arc::clone(&asked) });
    (Task { objective, train, validation }, made, asked)
}

#[test]
fn a_rollout_makes_the_batches_of_each_step_from_the_weights_before_it() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    let whole = in_dir(&recipe, "whole");
    let (mut task, made, asked) = echo(&whole);
    let losses = run_task(&whole, &mut task, None).losses();
    let steps: Vec<_> = made.lock().unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5]);
    // Nothing is read ahead: batch n is asked for after n rollouts.
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked, (0..6).map(|n| (n, n as usize)).collect::<Vec<_>>());
    // Its own best tokens become likelier.
    assert!(losses[5] < 0.9 * losses[0], "{losses:?}");
    // A resumed run makes the same batches.
    let parts = in_dir(&recipe, "parts");
    run_task(&parts, &mut echo(&parts).0, Some(2));
    let (mut task, made, _) = echo(&parts);
    let rest = run_task(&parts, &mut task, None).losses();
    assert_eq!(rest, losses[2..]);
    assert_eq!(made.lock().unwrap().first().unwrap().0, 2);
    assert!(checkpoint_bytes(&parts, 6) == checkpoint_bytes(&whole, 6));
}

/// Gives batches that contradict themselves.
struct Broken(Box<dyn Objective>);

impl Rollout for Broken {
    fn batches(&mut self, mut batches: Vec<Batch>, _: u64) -> Result<Vec<Batch>> {
        batches[0].targets.pop();
        Ok(batches)
    }
}

impl Objective for Broken {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        self.0.loss(batch, normalizer)
    }

    fn model(&self) -> &Model {
        self.0.model()
    }

    fn rollout(&mut self) -> Option<&mut dyn Rollout> {
        Some(self)
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.0.tokenizer()
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> Value {
        self.0.config_json()
    }
}

#[test]
fn a_batch_of_a_rollout_is_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), gpt2(16), ObjectiveKind::NextToken);
    let Task { objective, train, validation } = prepared(&recipe);
    let mut task = Task { objective: Box::new(Broken(objective)), train, validation };
    let never = AtomicBool::new(false);
    let error = run(&recipe, &mut task, None, &mut Watch::default(), &never).unwrap_err();
    assert!(error.to_string().contains("targets has 191 elements, expected 192"), "{error}");
    assert!(!never.load(Ordering::Relaxed));
}

/// A classifier's evaluation counts its passes through the loss: one for each batch.
#[test]
fn evaluation_runs_each_batch_once() {
    struct Counted {
        inner: Box<dyn Objective>,
        n_passes: Mutex<usize>,
    }

    impl Objective for Counted {
        fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
            *self.n_passes.lock().unwrap() += 1;
            self.inner.loss(batch, normalizer)
        }

        fn model(&self) -> &Model {
            self.inner.model()
        }

        fn tokenizer(&self) -> &Tokenizer {
            self.inner.tokenizer()
        }

        fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
            Ok(None)
        }

        fn config_json(&self) -> Value {
            self.inner.config_json()
        }
    }

    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), llama(32), ObjectiveKind::CLASSIFY);
    let Task { objective, validation, .. } = prepared(&recipe);
    let scored = lehr_train::evaluate(objective.as_ref(), validation.as_ref(), 0).unwrap();
    assert!(scored.accuracy.is_some());
    let counted = Counted { inner: objective, n_passes: Mutex::new(0) };
    let plain = lehr_train::evaluate(&counted, validation.as_ref(), 0).unwrap();
    // The classifier's own evaluation has the loss of its training, bit for bit.
    assert_eq!(plain.loss.to_bits(), scored.loss.to_bits());
    assert_eq!(plain.accuracy, None);
    assert_eq!(*counted.n_passes.lock().unwrap() as u64, validation.batches_per_epoch());
}
