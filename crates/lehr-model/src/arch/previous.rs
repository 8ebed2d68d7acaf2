//! The token before each token of a pass, for parts that read it outside of attention.

use lehr_tensor::{Device, Tensor};

use super::Tokens;
use crate::{Error, KvCache, Result};

/// Multipliers of the hash of two tokens.
const BIGRAM_HASH: [u64; 2] = [36_313, 27_191];

/// The previous token of each token of a pass. The first token of a text has none.
pub(super) struct PreviousTokens {
    /// Not 0 where a text begins, i32 `[B, T]`.
    starts: Tensor,
    /// The token before the first one of each row, i32 `[B, 1]`; 0 if there is none. `None` if no
    /// row has one.
    before: Option<Tensor>,
    ids: Tensor,
}

impl PreviousTokens {
    /// Finds the previous tokens of a pass, which continues the texts of `cache` if there is one.
    ///
    /// # Errors
    /// If the ids are on a GPU, as in recorded work, or memory runs out.
    pub(super) fn new(tokens: &Tokens, cache: Option<&KvCache>) -> Result<Self> {
        if tokens.ids.device() != Device::Cpu {
            let found = "token ids on a GPU";
            return Err(Error::layout(found, "token ids on the CPU: this model hashes them"));
        }
        let (batch, len) = (tokens.batch(), tokens.len());
        let before = cache.map_or(&[][..], KvCache::last_ids);
        let is_start = |i: usize| match &tokens.segment_starts {
            Some(starts) => starts.ids()[i] as usize == i % len,
            None => i.is_multiple_of(len) && before.get(i / len).is_none(),
        };
        let starts: Vec<i32> = (0..batch * len).map(|i| i32::from(is_start(i))).collect();
        let before = match before.is_empty() {
            true => None,
            false => Some(Tensor::from_ids(before, [batch, 1])?),
        };
        let starts = Tensor::from_ids(&starts, [batch, len])?;
        Ok(Self { starts, before, ids: tokens.ids.clone() })
    }

    /// Returns where texts begin, i32 `[B, T]`.
    pub(super) fn starts(&self) -> &Tensor {
        &self.starts
    }

    /// Returns the tokens before the first ones, i32 `[B, 1]`.
    pub(super) fn before(&self) -> Option<&Tensor> {
        self.before.as_ref()
    }

    /// Returns the last token of each row.
    pub(super) fn last_ids(&self) -> Vec<i32> {
        let len = self.ids.shape()[1].max(1);
        self.ids.ids().chunks_exact(len).filter_map(|row| row.last().copied()).collect()
    }

    /// Computes the row of each pair of tokens in a table of `n_rows` rows, i32 `[B, T]`: a hash
    /// of both. The first token of a text has the last row.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn bigrams(&self, n_rows: usize) -> Result<Tensor> {
        let (ids, len) = (self.ids.ids(), self.ids.shape()[1].max(1));
        let row = |i: usize| {
            let previous = match (self.starts.ids()[i], i % len, &self.before) {
                (0, 1.., _) => ids[i - 1],
                (0, 0, Some(before)) => before.ids()[i / len],
                _ => return n_rows as i32 - 1,
            };
            let [a, b] = BIGRAM_HASH;
            let hash = (a * ids[i] as u64) ^ (b * previous as u64);
            (hash % (n_rows as u64 - 1)) as i32
        };
        let rows: Vec<i32> = (0..ids.len()).map(row).collect();
        Ok(Tensor::from_ids(&rows, self.ids.shape())?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::arch::{Layout, PackedText};

    #[test]
    fn pairs_are_hashed_within_their_texts() {
        let texts: [&[i32]; 2] = [&[5, 6, 7], &[6, 7]];
        let layouts = texts.map(|ids| Layout::causal(ids.len()));
        let place =
            |i: usize| PackedText { ids: texts[i], layout: &layouts[i], row: 0, start: 3 * i };
        let tokens = Tokens::pack(&[place(0), place(1)], 1, 6).unwrap();
        let previous = PreviousTokens::new(&tokens, None).unwrap();
        assert_eq!(previous.starts().ids(), [1, 0, 0, 1, 0, 1]);
        let hash =
            |current: u64, previous: u64| ((36_313 * current) ^ (27_191 * previous)) as i32 % 100;
        let want = [100, hash(6, 5), hash(7, 6), 100, hash(7, 6), 100];
        assert_eq!(previous.bigrams(101).unwrap().ids(), want);
        assert_eq!(previous.last_ids(), [0]);
    }
}
