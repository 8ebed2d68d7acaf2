//! Stages: parts of a run with steps of other sizes.

use lehr_data::{Loader, RowSpan};

use crate::recipe::TrainConfig;

/// The parts of a run in which all steps have the same size.
#[derive(Clone, Debug, PartialEq)]
pub struct Stages {
    /// In order; the first begins at step 0.
    stages: Vec<Stage>,
    steps: u64,
}

/// Consecutive steps of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The first step, from 0.
    pub first_step: u64,
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Maximum number of rows of a micro-batch: as many tokens as `train.batch_size` rows of the
    /// full length.
    pub rows_max: usize,
}

impl Stage {
    /// Rows of a step.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens / self.seq_len
    }

    /// Micro-batches of a step.
    fn n_micro_batches(&self) -> usize {
        self.rows().div_ceil(self.rows_max)
    }
}

impl Stages {
    /// Returns the stages of a run. One without stages in its recipe has one.
    #[must_use]
    pub fn new(train: &TrainConfig) -> Self {
        let TrainConfig { steps, batch_size, seq_len: full, grad_accumulation, .. } = *train;
        let micro_batch = batch_size.saturating_mul(full);
        let tokens = starts(steps, train.batch_stages.iter().map(|s| (s.share, s.tokens)));
        let lens = starts(steps, train.seq_stages.iter().map(|s| (s.share, s.seq_len)));
        let mut firsts: Vec<u64> = tokens.iter().chain(&lens).map(|(first, _)| *first).collect();
        firsts.push(0);
        firsts.sort_unstable();
        firsts.dedup();
        let of = |starts: &[(u64, usize)], step, otherwise| {
            starts.iter().rev().find(|(first, _)| *first <= step).map_or(otherwise, |(_, v)| *v)
        };
        let stage = |first_step| {
            let seq_len = of(&lens, first_step, full);
            let rows_max = (micro_batch / seq_len).max(1);
            let usual = micro_batch.saturating_mul(grad_accumulation as usize);
            Stage { first_step, tokens: of(&tokens, first_step, usual), seq_len, rows_max }
        };
        Self { stages: firsts.into_iter().map(stage).collect(), steps }
    }

    /// Returns the stage of `step`, from 0.
    #[must_use]
    pub fn at(&self, step: u64) -> Stage {
        self.stages[self.index(step)]
    }

    /// Returns the tokens of the whole run.
    #[must_use]
    pub fn total_tokens(&self) -> u64 {
        (0..self.stages.len()).map(|i| self.stages[i].tokens as u64 * self.n_steps(i)).sum()
    }

    /// Describes a run of several stages.
    #[must_use]
    pub fn description(&self) -> Option<String> {
        if self.stages.len() < 2 {
            return None;
        }
        let stage = |(i, stage): (usize, &Stage)| {
            let Stage { tokens, seq_len, .. } = stage;
            format!("{} steps of {tokens} tokens in rows of {seq_len}", self.n_steps(i))
        };
        let stages: Vec<_> = self.stages.iter().enumerate().map(stage).collect();
        Some(format!("stages: {}; {} tokens in all", stages.join(", "), self.total_tokens()))
    }

    /// Returns the rows of each micro-batch of `step`. Each pass over the data reads every row
    /// once, also while their length changes: a stage begins at the first row of full length that
    /// the stages before it did not read, not even in part.
    pub fn spans(&self, step: u64, loader: &dyn Loader) -> Vec<RowSpan> {
        let index = self.index(step);
        let stage = &self.stages[index];
        let read = |i: usize| {
            let rows = self.stages[i].rows() as u64 * self.n_steps(i);
            rows.div_ceil(loader.parts(self.stages[i].seq_len))
        };
        let start = (0..index).map(read).sum();
        let (rows, n) = (stage.rows(), stage.n_micro_batches());
        let span = |i: usize| {
            let [begin, end] = [i, i + 1].map(|i| i * rows / n);
            let first = (step - stage.first_step) * rows as u64 + begin as u64;
            RowSpan { seq_len: stage.seq_len, start, first, n_rows: end - begin }
        };
        (0..n).map(span).collect()
    }

    /// Returns the tokens of a step and of a row in each stage.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.stages.iter().map(|stage| (stage.tokens, stage.seq_len))
    }

    /// Returns whether there are no steps in a stage that the recipe names.
    pub(crate) fn lacks_steps(train: &TrainConfig) -> bool {
        let shares = [
            train.batch_stages.iter().map(|s| (s.share, 0)).collect::<Vec<_>>(),
            train.seq_stages.iter().map(|s| (s.share, 0)).collect(),
        ];
        shares.into_iter().any(|shares| {
            let starts = starts(train.steps, shares.into_iter());
            let is_empty = |pair: &[(u64, usize)]| pair[0].0 == pair[1].0;
            starts.windows(2).any(is_empty)
                || starts.last().is_some_and(|(first, _)| *first >= train.steps)
        })
    }

    fn index(&self, step: u64) -> usize {
        self.stages.partition_point(|stage| stage.first_step <= step) - 1
    }

    fn n_steps(&self, index: usize) -> u64 {
        let end = self.stages.get(index + 1).map_or(self.steps, |stage| stage.first_step);
        end - self.stages[index].first_step
    }
}

/// Returns the first step of each part of a run, with its value.
fn starts(steps: u64, parts: impl Iterator<Item = (f64, usize)>) -> Vec<(u64, usize)> {
    let mut before = 0.0;
    let start = |(share, value)| {
        let first = (before * steps as f64).round() as u64;
        before += share;
        (first, value)
    };
    parts.map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;
    use crate::recipe::{BatchStage, SeqStage};
    use lehr_data::{Batch, Result};

    /// A loader of rows of 64 tokens.
    struct Rows64;

    impl Loader for Rows64 {
        fn batches_per_epoch(&self) -> u64 {
            10
        }

        fn batch(&self, _: u64) -> Result<Batch> {
            Ok(Batch::default())
        }

        fn batch_size(&self) -> usize {
            4
        }

        fn seq_len(&self) -> usize {
            64
        }
    }

    fn train(batch: &[(f64, usize)], seq: &[(f64, usize)]) -> TrainConfig {
        let batch = batch.iter().map(|&(share, tokens)| BatchStage { share, tokens });
        let seq = seq.iter().map(|&(share, seq_len)| SeqStage { share, seq_len });
        TrainConfig {
            steps: 10,
            batch_size: 4,
            seq_len: 64,
            batch_stages: batch.collect(),
            seq_stages: seq.collect(),
            ..Recipe::base().train
        }
    }

    #[test]
    fn a_run_without_stages_reads_the_batches_of_its_loader() {
        let train = TrainConfig { grad_accumulation: 3, ..train(&[], &[]) };
        let stages = Stages::new(&train);
        for step in 0..10 {
            let spans = stages.spans(step, &Rows64);
            assert_eq!(spans.len(), 3);
            for (i, span) in spans.iter().enumerate() {
                let first = (step * 3 + i as u64) * 4;
                assert_eq!(*span, RowSpan { seq_len: 64, start: 0, first, n_rows: 4 });
            }
        }
        assert_eq!(stages.total_tokens(), 10 * 3 * 4 * 64);
    }

    #[test]
    fn stages_read_all_rows_once_and_have_the_tokens_they_say() {
        let batch = [(0.3, 128), (0.2, 256), (0.5, 576)];
        let seq = [(0.4, 16), (0.6, 64)];
        let stages = Stages::new(&train(&batch, &seq));
        let (mut parts, mut total) = (Vec::new(), 0);
        for step in 0..10 {
            let stage = stages.at(step);
            let tokens = match step {
                0..3 => 128,
                3..5 => 256,
                _ => 576,
            };
            let seq_len = if step < 4 { 16 } else { 64 };
            assert_eq!((stage.tokens, stage.seq_len), (tokens, seq_len), "step {step}");
            total += tokens as u64;
            for span in stages.spans(step, &Rows64) {
                assert!(span.n_rows * span.seq_len <= 4 * 64, "{span:?}");
                let quarters = 64 / span.seq_len as u64;
                for row in span.first..span.first + span.n_rows as u64 {
                    let begin = (span.start * quarters + row) * (4 / quarters);
                    parts.extend(begin..begin + 4 / quarters);
                }
            }
        }
        assert_eq!(stages.total_tokens(), total);
        // All stages begin with a whole row here.
        assert_eq!(parts, (0..total / 16).collect::<Vec<_>>());
    }

    #[test]
    fn a_stage_without_steps_is_found() {
        assert!(!Stages::lacks_steps(&train(&[(0.1, 64), (0.9, 64)], &[])));
        assert!(Stages::lacks_steps(&train(&[(0.01, 64), (0.99, 64)], &[])));
        assert!(Stages::lacks_steps(&train(&[], &[(0.99, 64), (0.01, 64)])));
    }
}
