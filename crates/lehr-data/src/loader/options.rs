//! Options of all loaders, and the mapping of a batch index to rows of the data.

use super::RowSpan;
use super::order::{Permutation, mix};
use crate::{Error, Result};

/// The order of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A new permutation each epoch, without end.
    Shuffled {
        /// The same seed gives the same order.
        seed: u64,
    },
    /// All rows once, in order; the last batch is padded. For validation.
    Sequential,
}

/// The options of all loaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Rows of a batch of one process, B.
    pub batch_size: usize,
    /// Tokens of a row, T.
    pub seq_len: usize,
    /// The order of the data.
    pub order: Order,
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Whether labelled texts end with the end-of-document token.
    pub ends_texts: bool,
}

impl LoaderOptions {
    /// Creates options for shuffled data and one process.
    pub fn shuffled(batch_size: usize, seq_len: usize, seed: u64) -> Self {
        Self {
            batch_size,
            seq_len,
            order: Order::Shuffled { seed },
            rank: 0,
            world: 1,
            ends_texts: true,
        }
    }

    /// Creates options for sequential data, read once, and one process.
    pub fn sequential(batch_size: usize, seq_len: usize) -> Self {
        Self { batch_size, seq_len, order: Order::Sequential, rank: 0, world: 1, ends_texts: true }
    }

    /// Sets the process `rank` of `world`.
    pub fn with_world(self, rank: usize, world: usize) -> Self {
        Self { rank, world, ..self }
    }

    /// Sets whether labelled texts end with the end-of-document token.
    pub fn with_ends(self, ends_texts: bool) -> Self {
        Self { ends_texts, ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let Self { batch_size, seq_len, rank, world, .. } = *self;
        let positions =
            batch_size.checked_mul(seq_len).and_then(|positions| i32::try_from(positions).ok());
        if batch_size == 0 || seq_len == 0 || positions.is_none() {
            return Err(Error::Options(format!(
                "a batch of {batch_size} rows of {seq_len} tokens, expected 1 to {} tokens in all",
                i32::MAX
            )));
        }
        if rank >= world {
            return Err(Error::Options(format!("rank {rank} of {world}, expected 0 to world - 1")));
        }
        Ok(())
    }
}

/// A row of the data, and the key of the epoch in which it is read (none in sequential order).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowOf {
    pub(crate) row: u64,
    pub(crate) epoch_key: Option<u64>,
    /// Number of the part of the row, from 0, if rows are read in parts.
    pub(crate) part: u64,
}

/// Maps batches to the rows of the data.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) options: LoaderOptions,
    /// Rows of the data, at least one.
    count: u64,
}

impl Rows {
    pub(crate) fn new(options: LoaderOptions, count: u64) -> Self {
        Self { options, count }
    }

    pub(crate) fn batches_per_epoch(&self) -> u64 {
        self.count
            .div_ceil((self.options.batch_size as u64).saturating_mul(self.options.world as u64))
    }

    /// Returns the rows of batch `index`; fewer at the end of sequential data.
    pub(crate) fn of_batch(&self, index: u64) -> Result<Vec<RowOf>> {
        let LoaderOptions { batch_size, order, .. } = self.options;
        let batches = self.batches_per_epoch();
        if order == Order::Sequential && index >= batches {
            return Err(Error::NoSuchBatch { index, batches });
        }
        Ok(self.from(u128::from(index) * batch_size as u128, batch_size, (0, 1)))
    }

    /// Returns the rows of a span, each cut into `parts`.
    pub(crate) fn of_span(&self, span: RowSpan, parts: u64) -> Vec<RowOf> {
        self.from(u128::from(span.first), span.n_rows, (span.start, parts))
    }

    /// Returns an error unless the rows of `span` have the length of the data's.
    pub(crate) fn expect_whole(&self, span: RowSpan) -> Result<()> {
        let (found, seq_len) = (span.seq_len, self.options.seq_len);
        if found == seq_len {
            return Ok(());
        }
        let reason = "examples are packed into rows of one length";
        Err(Error::Options(format!("rows of {found} tokens, expected {seq_len}: {reason}")))
    }

    /// Returns `n` rows of this process after its `first`, counted in parts of rows from row
    /// `start`.
    fn from(&self, first: u128, n: usize, (start, parts): (u64, u64)) -> Vec<RowOf> {
        let LoaderOptions { order, rank, world, .. } = self.options;
        let first = first * world as u128 + rank as u128 * n as u128;
        let (count, parts) = (u128::from(self.count), u128::from(parts));
        let rows = (first..first + n as u128).map_while(|at| {
            let (at, part) = (u128::from(start) + at / parts, (at % parts) as u64);
            match order {
                Order::Sequential => {
                    (at < count).then_some(RowOf { row: at as u64, epoch_key: None, part })
                }
                Order::Shuffled { seed } => {
                    let epoch_key = mix(seed ^ mix((at / count) as u64));
                    let row = Permutation::new(self.count, epoch_key).at((at % count) as u64);
                    Some(RowOf { row, epoch_key: Some(epoch_key), part })
                }
            }
        });
        rows.collect()
    }
}
