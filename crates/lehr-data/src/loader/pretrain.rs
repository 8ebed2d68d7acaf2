//! Windows of a stream of documents, for pre-training and its validation.

use std::sync::Arc;

use super::documents::ShuffledDocuments;
use super::options::{LoaderOptions, RowOf, Rows};
use super::{Loader, RowSpan};
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
///
/// A shuffled loader permutes the rows of each epoch. After
/// [`with_shuffled_documents`](Self::with_shuffled_documents) it permutes the documents as well:
/// the stream of an epoch is then its own, and so are the neighbours of a document in a row and the
/// places at which it is cut.
#[derive(Debug, Clone)]
pub struct PretrainLoader {
    shards: ShardSet,
    rows: Rows,
    layout: Option<LayoutRule>,
    /// The order of documents in each epoch; `None` = that of the shards.
    documents: Option<Arc<ShuffledDocuments>>,
    /// Tokens of the stream from one window to the next.
    stride: u64,
}

/// A range of tokens of the stream, with the next token as the last target.
struct Window {
    first: u64,
    end: u64,
    epoch_key: Option<u64>,
}

impl PretrainLoader {
    /// Loads windows of `shards`. Validation uses [`Order::Sequential`](super::Order).
    ///
    /// # Errors
    /// If the options contradict each other.
    pub fn new(shards: ShardSet, options: LoaderOptions) -> Result<Self> {
        options.check()?;
        let stride = stride(&shards, options.seq_len)?;
        // A document has at least two tokens, so there is a window.
        let windows = (shards.tokens() - 1).div_ceil(stride);
        let rows = Rows::new(options, windows);
        Ok(Self { shards, rows, layout: None, documents: None, stride })
    }

    /// Draws a new order of documents for each epoch of shuffled data. The lengths of all documents
    /// are then in memory, four bytes each.
    ///
    /// # Errors
    /// If the shards cannot be read.
    pub fn with_shuffled_documents(self) -> Result<Self> {
        let documents = Some(Arc::new(ShuffledDocuments::new(&self.shards)?));
        Ok(Self { documents, ..self })
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

    fn batch_of(&self, (n_rows, seq_len): (usize, usize), rows: Vec<RowOf>) -> Result<Batch> {
        let pad = crate::batch::id(self.shards.end_of_document());
        let mut batch = Batch::padding(n_rows, seq_len, pad);
        let stride = stride(&self.shards, seq_len)?;
        for (row, RowOf { row: of, epoch_key, part }) in rows.into_iter().enumerate() {
            let begin = of * self.stride;
            let first = begin + part * stride;
            let last = (first + stride).min(begin + self.stride).min(self.shards.tokens() - 1);
            // The last row of an epoch may have fewer parts; the others are padding.
            if first < last {
                self.fill(&mut batch, row, &Window { first, end: last + 1, epoch_key })?;
            }
        }
        Ok(batch)
    }

    fn fill(&self, batch: &mut Batch, row: usize, window: &Window) -> Result<()> {
        let prefix = self.shards.document_prefix();
        let range = window.first..window.end;
        let stretch = match (&self.documents, window.epoch_key) {
            (Some(documents), Some(key)) => documents.stretch(&self.shards, key, range)?,
            _ => self.shards.stretch(range)?,
        };
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
        self.batch_of((self.batch_size(), self.seq_len()), self.rows.of_batch(index)?)
    }

    fn rows(&self, span: RowSpan) -> Result<Batch> {
        let RowSpan { seq_len, n_rows, .. } = span;
        if seq_len == 0 || !self.seq_len().is_multiple_of(seq_len) {
            let whole = self.seq_len();
            let reason = format!("rows of {seq_len} tokens, expected a divisor of {whole}");
            return Err(Error::Options(reason));
        }
        stride(&self.shards, seq_len)?;
        self.batch_of((n_rows, seq_len), self.rows.of_span(span, self.parts(seq_len)))
    }

    fn parts(&self, seq_len: usize) -> u64 {
        // A row shorter than a prefix is refused when it is read.
        stride(&self.shards, seq_len).map_or(1, |stride| self.stride.div_ceil(stride))
    }

    fn batch_size(&self) -> usize {
        self.rows.options.batch_size
    }

    fn seq_len(&self) -> usize {
        self.rows.options.seq_len
    }
}

/// Returns the tokens of the stream in a row of `seq_len` tokens.
fn stride(shards: &ShardSet, seq_len: usize) -> Result<u64> {
    let n_prefix = shards.document_prefix().len();
    let stride = seq_len.checked_sub(n_prefix).filter(|stride| *stride > 0);
    stride.map(|stride| stride as u64).ok_or_else(|| {
        Error::Options(format!(
            "rows of {seq_len} tokens, expected {n_prefix} before a document and at least one of it"
        ))
    })
}
