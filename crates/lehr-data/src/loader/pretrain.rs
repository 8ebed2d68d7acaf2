//! Windows of a stream of documents, for pre-training and its validation.

use super::Loader;
use super::options::{LoaderOptions, Rows};
use crate::batch::{Batch, LayoutRule};
use crate::shard::ShardSet;
use crate::{Error, Result};

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
///
/// If documents begin with a prefix of P tokens, such as `<s>` or `[gMASK] <sop>`, so does every
/// segment: a document that began in an earlier window starts again with the prefix, as in
/// generation and evaluation. A row then holds T - P tokens of the stream, and the tokens of
/// prefixes are no targets.
#[derive(Debug, Clone)]
pub struct PretrainLoader {
    shards: ShardSet,
    rows: Rows,
    layout: Option<LayoutRule>,
    /// Tokens of the stream from one window to the next.
    stride: usize,
}

impl PretrainLoader {
    /// Loads windows of `shards`. Validation uses [`Order::Sequential`](super::Order).
    ///
    /// # Errors
    /// If the options contradict each other.
    pub fn new(shards: ShardSet, options: LoaderOptions) -> Result<Self> {
        options.check()?;
        let n_prefix = shards.document_prefix().len();
        let Some(stride) = options.seq_len.checked_sub(n_prefix).filter(|stride| *stride > 0)
        else {
            return Err(Error::Options(format!(
                "rows of {} tokens, expected {n_prefix} before a document and at least one of it",
                options.seq_len
            )));
        };
        // A document has at least two tokens, so there is a window.
        let windows = (shards.tokens() - 1).div_ceil(stride as u64);
        Ok(Self { shards, rows: Rows::new(options, windows), layout: None, stride })
    }

    /// Sets the positions of each segment by `layout` instead of counting from 0.
    #[must_use]
    pub fn with_layout(self, layout: LayoutRule) -> Self {
        Self { layout: Some(layout), ..self }
    }

    /// Returns the number of tokens with a target in one epoch.
    pub fn targets_per_epoch(&self) -> u64 {
        let not_aimed_at = self.shards.document_prefix().len().max(1) as u64;
        self.shards.tokens() - not_aimed_at * self.shards.documents()
    }

    fn fill(&self, batch: &mut Batch, row: usize, window: u64) -> Result<()> {
        let prefix = self.shards.document_prefix();
        let first = window * self.stride as u64;
        let end = (first + self.stride as u64 + 1).min(self.shards.tokens());
        let stretch = self.shards.stretch(first..end)?;
        let n_repeated = prefix.len().min(usize::try_from(stretch.n_before).unwrap_or(usize::MAX));
        let ids = [&prefix[..n_repeated], &stretch.ids].concat();
        let begins = |t: usize| t >= n_repeated && stretch.begins[t - n_repeated];
        let n = ids.len() - 1;
        let mut start = 0;
        for t in 1..=n {
            if t == n || begins(t) {
                // A prefix cut by the end of a row predicts nothing.
                if t - start >= prefix.len() {
                    batch.put_segment(row, start, &ids[start..t], self.layout.as_ref())?;
                }
                if begins(t) {
                    start = t;
                }
            }
            // The first token after a repeated prefix was a target of the window before.
            if !begins(t) && t - start >= prefix.len().max(1) && t > n_repeated {
                batch.set_target(row, t - 1, ids[t], self.shards.byte_lengths());
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
