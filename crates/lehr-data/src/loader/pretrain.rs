//! Windows of a stream of documents, for pre-training and its validation.

use super::Loader;
use super::options::{LoaderOptions, Rows};
use crate::Result;
use crate::batch::{Batch, LayoutRule};
use crate::shard::ShardSet;

/// Batches of windows of the token stream of shards.
///
/// Row w of the data holds the tokens wT to wT + T - 1 of the stream of N tokens, and its targets
/// are the tokens wT + 1 to wT + T: neighbouring windows share one token, which is the last target
/// of one and the first input of the next. So in one epoch every token is a target exactly once,
/// except the first token of each document, which nothing precedes; the last token of a document,
/// its end-of-document token, is a target, and as an input has none. There are ceil((N - 1) / T)
/// rows; the last may end in padding.
///
/// A window's segments are its documents. A document that began in an earlier window starts again
/// at position 0, because its earlier tokens are not visible.
#[derive(Debug, Clone)]
pub struct PretrainLoader {
    shards: ShardSet,
    rows: Rows,
    layout: Option<LayoutRule>,
}

impl PretrainLoader {
    /// Loads windows of `shards`. Validation uses [`Order::Sequential`](super::Order).
    ///
    /// # Errors
    /// If the options contradict each other.
    pub fn new(shards: ShardSet, options: LoaderOptions) -> Result<Self> {
        options.check()?;
        // A document has at least two tokens, so there is a window.
        let windows = (shards.tokens() - 1).div_ceil(options.seq_len as u64);
        Ok(Self { shards, rows: Rows::new(options, windows), layout: None })
    }

    /// Sets the positions of each segment by `layout` instead of counting from 0.
    #[must_use]
    pub fn with_layout(self, layout: LayoutRule) -> Self {
        Self { layout: Some(layout), ..self }
    }

    /// Returns the number of tokens with a target in one epoch.
    pub fn targets_per_epoch(&self) -> u64 {
        self.shards.tokens() - self.shards.documents()
    }

    fn fill(&self, batch: &mut Batch, row: usize, window: u64) -> Result<()> {
        let first = window * batch.seq_len as u64;
        let end = (first + batch.seq_len as u64 + 1).min(self.shards.tokens());
        let stretch = self.shards.stretch(first..end);
        let n = stretch.ids.len() - 1;
        let mut start = 0;
        for t in 1..=n {
            if t == n || stretch.begins[t] {
                let ids = &stretch.ids[start..t];
                batch.put_segment(row, start, ids, self.layout.as_ref())?;
                start = t;
            }
            if !stretch.begins[t] {
                batch.set_target(row, t - 1, stretch.ids[t], self.shards.byte_lengths());
            }
        }
        Ok(())
    }
}

impl Loader for PretrainLoader {
    fn batches_per_epoch(&self) -> u64 {
        self.rows.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        let pad = crate::batch::id(self.shards.end_of_document());
        let mut batch = Batch::padding(self.batch_size(), self.seq_len(), pad);
        for (row, window) in self.rows.of_batch(index)?.into_iter().enumerate() {
            self.fill(&mut batch, row, window.row)?;
        }
        Ok(batch)
    }

    fn batch_size(&self) -> usize {
        self.rows.options.batch_size
    }

    fn seq_len(&self) -> usize {
        self.rows.options.seq_len
    }
}
