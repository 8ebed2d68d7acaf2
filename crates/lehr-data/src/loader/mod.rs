//! Loaders: pure functions from (seed, batch index) to a [`Batch`].
//!
//! All loaders order *rows*: an epoch is a permutation of the rows of the data, drawn from the seed
//! and the number of the epoch, and batches take consecutive rows of epoch after epoch. A batch at
//! the border of two epochs holds the last rows of one and the first of the next, so that all
//! batches of a shuffled loader are full. With `world` processes, the rows of batch `index` are
//! those of `world` times as large a batch: rank 0 takes the first part, and so on.

mod chat;
mod class;
mod options;
mod order;
mod packing;
mod pretrain;
mod sft;

pub use chat::Renderer;
pub use class::{ClassLoader, LabelSet};
pub use options::{LoaderOptions, Order};
pub use pretrain::PretrainLoader;
pub use sft::{Answers, SftLoader, conversation_lengths};

use crate::{Batch, Result};

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

    /// Returns the number of rows of a batch of this process, B.
    fn batch_size(&self) -> usize;

    /// Returns the number of tokens of a row, T.
    fn seq_len(&self) -> usize;
}
