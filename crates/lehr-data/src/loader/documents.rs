//! Documents in an order that each epoch draws anew.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::order::{Permutation, mix};
use crate::Result;
use crate::shard::{ShardSet, Stretch};

/// Documents between two of those whose first token is kept in memory. Finding a token walks at
/// most over so many documents.
const SPACING: u64 = 64;
/// Epochs whose order is kept: a batch may hold the end of one and the start of the next.
const EPOCHS_KEPT: usize = 2;

/// The stream of all documents in the order of an epoch, for any epoch.
///
/// Any range of any epoch is found directly, so a run resumes anywhere. The first range of an epoch
/// needs one pass over the lengths of all documents.
#[derive(Debug)]
pub(crate) struct ShuffledDocuments {
    /// Tokens of each document in the order of the shards.
    lengths: Vec<u32>,
    /// The orders used last, newest last.
    epochs: Mutex<Vec<Arc<Epoch>>>,
}

/// The order of one epoch.
#[derive(Debug)]
struct Epoch {
    key: u64,
    order: Permutation,
    /// The first token of every [`SPACING`]th document of the epoch.
    starts: Vec<u64>,
}

impl ShuffledDocuments {
    pub(crate) fn new(shards: &ShardSet) -> Result<Self> {
        Ok(Self { lengths: shards.document_lengths()?, epochs: Mutex::default() })
    }

    /// Returns the tokens of `range`, which must lie within the stream of the epoch of `key`.
    pub(crate) fn stretch(
        &self,
        shards: &ShardSet,
        key: u64,
        range: Range<u64>,
    ) -> Result<Stretch> {
        let epoch = self.epoch(key);
        let block = epoch.starts.partition_point(|&start| start <= range.start) - 1;
        let mut start = epoch.starts[block];
        let mut stretch = Stretch::default();
        for index in block as u64 * SPACING..self.lengths.len() as u64 {
            if start >= range.end {
                break;
            }
            let document = epoch.order.at(index);
            let end = start + u64::from(self.lengths[document as usize]);
            if end > range.start {
                let first = range.start.max(start);
                if stretch.ids.is_empty() {
                    stretch.n_before = first - start;
                }
                let at = stretch.ids.len();
                let tokens = first - start..range.end.min(end) - start;
                stretch.ids.extend(shards.document_ids(document, tokens)?);
                stretch.begins.resize(stretch.ids.len(), false);
                stretch.begins[at] = first == start;
            }
            start = end;
        }
        Ok(stretch)
    }

    fn epoch(&self, key: u64) -> Arc<Epoch> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = epochs.iter().find(|epoch| epoch.key == key) {
            return Arc::clone(epoch);
        }
        let epoch = Arc::new(Epoch::new(key, &self.lengths));
        if epochs.len() == EPOCHS_KEPT {
            epochs.remove(0);
        }
        epochs.push(Arc::clone(&epoch));
        epoch
    }
}

impl Epoch {
    fn new(key: u64, lengths: &[u32]) -> Self {
        let n = lengths.len() as u64;
        // Unrelated to the order of rows, which has the same key.
        let order = Permutation::new(n, mix(key ^ 0x646F_6375_6D65_6E74));
        let (mut starts, mut start) = (Vec::new(), 0);
        for index in 0..n {
            if index.is_multiple_of(SPACING) {
                starts.push(start);
            }
            start += u64::from(lengths[order.at(index) as usize]);
        }
        Self { key, order, starts }
    }
}
