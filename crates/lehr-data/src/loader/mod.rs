//! Loaders: pure functions from (seed, batch index) to a [`Batch`].
//!
//! All loaders order *rows*: an epoch is a permutation of the rows of the data, drawn from the seed
//! and the number of the epoch, and batches take consecutive rows of epoch after epoch. A batch at
//! the border of two epochs holds the last rows of one and the first of the next, so that all
//! batches of a shuffled loader are full. With `world` processes, the rows of batch `index` are
//! those of `world` times as large a batch: rank 0 takes the first part, and so on.
//!
//! A run may change the size of its batches and the length of its rows. It then reads rows by their
//! numbers ([`Loader::rows`]), and short rows are equal parts of rows of the full length.

mod chat;
mod class;
mod documents;
mod entities;
mod options;
mod order;
mod packing;
mod pretrain;
mod sft;

pub use chat::Renderer;
pub use class::{ClassLoader, LabelSet};
pub use entities::{EntityLoader, WordCounts};
pub use options::{LoaderOptions, Order};
pub(crate) use order::mix;
pub use pretrain::PretrainLoader;
pub use sft::{Answers, SftLoader, conversation_lengths};

use crate::{Batch, Error, Result};

/// Consecutive rows of a loader's data, perhaps shorter than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSpan {
    /// Tokens of a row. The loader's own length is a multiple of it.
    pub seq_len: usize,
    /// Rows of the loader's own length before the first of `seq_len`.
    pub start: u64,
    /// Rows of `seq_len` between these and the span, of this process.
    pub first: u64,
    /// Number of rows.
    pub n_rows: usize,
}

/// A source of batches. Any batch can be read at any time, in any order, from any thread.
pub trait Loader: Send + Sync {
    /// Returns the number of batches (of all processes together) in one pass over the data, rounded
    /// up.
    fn batches_per_epoch(&self) -> u64;

    /// Reads batch `index` of this process, from 0. A shuffled loader has no last batch. A
    /// sequential one has [`batches_per_epoch`](Self::batches_per_epoch) and pads the last one.
    ///
    /// # Errors
    /// If there is no such batch.
    fn batch(&self, index: u64) -> Result<Batch>;

    /// Reads a batch of other rows than those of [`batch`](Self::batch). A loader need not have
    /// batches of other sizes.
    ///
    /// # Errors
    /// If the loader has no such rows.
    fn rows(&self, span: RowSpan) -> Result<Batch> {
        let RowSpan { seq_len, start, first, n_rows } = span;
        let (at, n) = (start + first, self.batch_size());
        if seq_len == self.seq_len() && n_rows == n && at.is_multiple_of(n as u64) {
            return self.batch(at / n as u64);
        }
        Err(Error::Options(format!(
            "{n_rows} rows of {seq_len} tokens, expected the {n} rows of {} tokens of a batch",
            self.seq_len()
        )))
    }

    /// Returns the number of rows of `seq_len` tokens into which a row is cut.
    fn parts(&self, seq_len: usize) -> u64 {
        self.seq_len().div_ceil(seq_len.max(1)) as u64
    }

    /// Returns the number of rows of a batch of this process, B.
    fn batch_size(&self) -> usize;

    /// Returns the number of tokens of a row, T.
    fn seq_len(&self) -> usize;
}
