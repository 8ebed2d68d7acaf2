//! From the second step on, training asks the system for no memory. The arena is one per process,
//! so this is the only test of its file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::AtomicBool;

use common::{gpt2, llama, prepared, recipe};
use lehr_data::{Batch, Loader};
use lehr_tensor::{Philox, arena};
use lehr_train::recipe::ObjectiveKind;
use lehr_train::{Event, Observer, Recipe, Task};

const STEPS: usize = 24;

/// The arena after each step.
#[derive(Default)]
struct ArenaWatch {
    after: Vec<arena::Stats>,
}

impl Observer for ArenaWatch {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Stepped { .. } = event {
            self.after.push(arena::stats());
        }
    }
}

/// Random tokens, other ones in every batch, each position with a target.
struct AllSupervised {
    batch_size: usize,
    seq_len: usize,
}

impl Loader for AllSupervised {
    fn batches_per_epoch(&self) -> u64 {
        3
    }

    fn batch(&self, index: u64) -> lehr_data::Result<Batch> {
        let n = self.batch_size * self.seq_len;
        let draw = |i: usize| (Philox::new(5, index).block(i as u64)[0] % 300) as i32;
        Ok(Batch {
            batch_size: self.batch_size,
            seq_len: self.seq_len,
            tokens: (0..n).map(draw).collect(),
            targets: (1..=n).map(draw).collect(),
            positions: (0..n).map(|i| (i % self.seq_len) as i32).collect(),
            segment_starts: vec![0; n],
            target_bytes: n as u64,
            n_targets: n,
            ..Batch::default()
        })
    }

    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn seq_len(&self) -> usize {
        self.seq_len
    }
}

fn watch(recipe: &Recipe, task: &mut Task) -> Vec<arena::Stats> {
    assert!(task.train.batch(0).unwrap() != task.train.batch(1).unwrap(), "batches are to vary");
    let before = arena::stats();
    let mut watch = ArenaWatch::default();
    lehr_train::run(recipe, task, None, &mut watch, &AtomicBool::new(false)).unwrap();
    assert_eq!(watch.after.len(), STEPS);
    let second = watch.after[1];
    assert!(second.n_growths > before.n_growths, "memory of an earlier case was enough");
    for (index, stats) in watch.after.iter().enumerate().skip(2) {
        let before = watch.after[index - 1];
        assert!(stats.n_blocks > before.n_blocks, "step {} took nothing", index + 1);
        assert_eq!(stats.used_bytes, before.used_bytes, "step {} keeps memory", index + 1);
    }
    watch.after
}

#[test]
fn after_the_second_step_the_arena_does_not_grow() {
    // Each is larger than the one before, so that it needs new memory in its first steps.
    for (model, accumulation) in [(gpt2(16), 1), (llama(32), 1), (llama(64), 3)] {
        let scratch = tempfile::tempdir().unwrap();
        let mut recipe = recipe(scratch.path(), model, ObjectiveKind::NextToken);
        recipe.train.steps = STEPS as u64;
        recipe.train.grad_accumulation = accumulation;
        recipe.eval.every_steps = 5;
        let mut task = prepared(&recipe);
        let (batch_size, seq_len) = (recipe.train.batch_size, recipe.train.seq_len);
        task.train = Box::new(AllSupervised { batch_size, seq_len });
        task.validation = Box::new(AllSupervised { batch_size, seq_len });
        let after = watch(&recipe, &mut task);
        let marks = |s: arena::Stats| (s.n_growths, s.high_water_bytes);
        assert_eq!(marks(after[STEPS - 1]), marks(after[1]), "{:?}", recipe.model);
    }

    // Documents end at other places in each batch, so the number of targets varies and with it the
    // room that the loss takes: what is free is cut a little differently now and then.
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(96), ObjectiveKind::NextToken);
    recipe.train.steps = STEPS as u64;
    recipe.eval.every_steps = 5;
    let after = watch(&recipe, &mut prepared(&recipe));
    let (second, last) = (after[1].high_water_bytes, after[STEPS - 1].high_water_bytes);
    assert!(last - second <= second / 32, "the arena grew from {second} to {last} bytes");
}
