//! Keys and values that lie in pages of a pool that sequences of different lengths share.

use crate::{Device, Error, Result, Tensor};

const OP: &str = "attention";

/// The pages of a pool `[n_pages, P, K, E]` that each sequence has, in order, and its number of
/// tokens: token `i` of sequence `b` is row `i % P` of page `table[b, i / P]`. P is a power of two.
/// Sequences may share pages that none of them writes. A GPU reads table and lengths when the work
/// runs, so recorded work serves sequences that grow, join and leave.
#[derive(Clone, Debug)]
pub struct Pages {
    table: Tensor,
    lengths: Tensor,
    /// The lengths on the host, if they are known there.
    host_lengths: Option<Tensor>,
}

impl Pages {
    /// From `table` i32 `[B, max_pages]` and `lengths` i32 `[B]`, 0 for a row without a sequence.
    /// Entries behind the tokens of a sequence may be anything. On a GPU the caller has checked
    /// that all used entries are within the pool.
    ///
    /// # Errors
    /// If types, shapes or devices do not fit together.
    pub fn new(table: Tensor, lengths: Tensor) -> Result<Self> {
        table.expect_ids(OP)?;
        lengths.expect_ids(OP)?;
        lengths.expect_on(OP, table.device())?;
        match (&*table.shape(), &*lengths.shape()) {
            ([batch, _], [n]) if batch == n => {
                let host_lengths = (lengths.device() == Device::Cpu).then(|| lengths.clone());
                Ok(Self { table, lengths, host_lengths })
            }
            _ => {
                let rule = "a table of pages is [B, max_pages], lengths are [B]";
                Err(Error::Shape { op: OP, lhs: table.shape(), rhs: lengths.shape(), rule })
            }
        }
    }

    /// The same pages with table and lengths on `device`. The host still knows the lengths.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let (table, lengths) = (self.table.to_device(device)?, self.lengths.to_device(device)?);
        Ok(Self { table, lengths, host_lengths: self.host_lengths.clone() })
    }

    /// How many sequences there are.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.lengths.shape()[0]
    }

    /// The pages of each text, i32 `[B, max_pages]`.
    #[must_use]
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// Tokens of each text, i32 `[B]`.
    #[must_use]
    pub fn lengths(&self) -> &Tensor {
        &self.lengths
    }

    /// Tokens of each sequence, if the host knows them.
    pub(crate) fn host_lengths(&self) -> Option<&[i32]> {
        self.host_lengths.as_ref().map(Tensor::ids)
    }

    /// The most pages of a text.
    pub(crate) fn max_pages(&self) -> usize {
        self.table.shape()[1]
    }

    /// An error unless these are `batch` texts in pages of `pool`; how often 1 is doubled to give
    /// P.
    pub(crate) fn check(&self, op: &'static str, pool: &Tensor, batch: usize) -> Result<u32> {
        self.table.expect_on(op, pool.device())?;
        let shape = pool.shape();
        if shape.len() != 4 || !shape[1].is_power_of_two() {
            let expected = "[n_pages, P, K, E] with a power of two P".to_owned();
            return Err(Error::Rank { op, found: shape, expected });
        }
        if self.batch() != batch {
            let rule = "the table must have a row for each text";
            return Err(Error::Shape { op, lhs: self.table.shape(), rhs: shape, rule });
        }
        let shift = shape[1].trailing_zeros();
        if !pool.is_cuda() {
            self.check_numbers(op, shape[0], shift)?;
        }
        Ok(shift)
    }

    /// An error unless the numbers, which are on the CPU, stay within `n_pages` pages.
    fn check_numbers(&self, op: &'static str, n_pages: usize, shift: u32) -> Result<()> {
        let max = self.max_pages();
        for (b, &length) in self.lengths.ids().iter().enumerate() {
            let Some(n) = usize::try_from(length).ok().filter(|n| *n <= max << shift) else {
                let (index, limit) = (i64::from(length), (max << shift) + 1);
                return Err(Error::Index { op, index, position: b, limit });
            };
            let used = &self.table.ids()[b * max..][..n.div_ceil(1 << shift)];
            let is_bad = |page: &i32| usize::try_from(*page).map_or(true, |page| page >= n_pages);
            if let Some(i) = used.iter().position(is_bad) {
                let (index, position) = (i64::from(used[i]), b * max + i);
                return Err(Error::Index { op, index, position, limit: n_pages });
            }
        }
        Ok(())
    }
}
