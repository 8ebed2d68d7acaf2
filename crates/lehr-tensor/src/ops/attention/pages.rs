//! Keys and values that lie in pages, which texts of different lengths share.

use super::cpu::{self, Heads, Paged, Problem};
use super::{Mask, OP, Size, check_scale, cuda};
use crate::autograd::records;
use crate::{Error, Result, Tensor};

/// Which pages of a pool `[n_pages, P, K, E]` each text has, in order, and how many of its tokens
/// lie there: token `i` of text `b` is row `i % P` of page `table[b, i / P]`. P is a power of two;
/// no two texts have the same page. On a GPU both are read when the work runs, so that recorded
/// work serves texts that grow, join and leave.
#[derive(Clone, Debug)]
pub struct Pages {
    table: Tensor,
    lengths: Tensor,
}

impl Pages {
    /// From `table` i32 `[B, max_pages]`, of which the entries behind a text's tokens may be
    /// anything, and `lengths` i32 `[B]`, 0 for a row without a text. On a GPU nobody checks that
    /// all is within the pool: the caller has.
    ///
    /// # Errors
    /// If types, shapes or devices do not fit together.
    pub fn new(table: Tensor, lengths: Tensor) -> Result<Self> {
        table.expect_ids(OP)?;
        lengths.expect_ids(OP)?;
        lengths.expect_on(OP, table.device())?;
        match (&*table.shape(), &*lengths.shape()) {
            ([batch, _], [n]) if batch == n => Ok(Self { table, lengths }),
            _ => {
                let rule = "a table of pages is [B, max_pages], lengths are [B]";
                Err(Error::Shape { op: OP, lhs: table.shape(), rhs: lengths.shape(), rule })
            }
        }
    }

    /// How many texts there are.
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

/// Computes [`Tensor::attention`] of `q [B, Tq, H, E]` over pools `k` and `v` `[n_pages, P, K, E]`,
/// for masks with pages. The queries are the last tokens of each sequence.
pub(super) fn attention(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    (mask, pages): (&Mask, &Pages),
    scale: f32,
) -> Result<Tensor> {
    let (size, shift) = check(q, (k, v), pages)?;
    check_scale(scale)?;
    let refuse = |value: &str, expected| {
        Err(Error::Argument { op: OP, name: "pages", value: value.to_owned(), expected })
    };
    if records(&[q, k, v]) {
        return refuse("beside inputs that want gradients", "a call inside of no_grad");
    }
    if mask.has_intervals() || mask.has_leading_keys() {
        return refuse(
            "in a mask with segments, prefixes or leading keys",
            "a causal mask, or one that sees all",
        );
    }
    let mut out = q.like(q.shape())?;
    if out.shape().n_elements() == 0 {
        return Ok(out);
    }
    let rule = mask.rule(size.batch, size.tq, size.tk)?;
    if q.is_cuda() {
        if size.width > 256 {
            let (value, expected) = (size.width.to_string(), "at most 256 on a GPU");
            return Err(Error::Argument { op: OP, name: "head width", value, expected });
        }
        cuda::decode_paged([q, k, v], size, rule, (pages, shift), scale, &mut out)?;
        return Ok(out);
    }
    let lengths = pages.lengths.ids();
    let intervals = mask.intervals_at_ends(lengths, size.tq);
    let heads = |x: &Tensor| x.shape()[2] * size.width;
    let problem = Problem {
        size,
        n_keys: lengths.iter().copied().max().unwrap_or(0) as usize,
        scale,
        intervals: &intervals,
        pages: Some(Paged { table: pages.table.ids(), max: pages.max_pages(), shift }),
        q: Heads { data: q.data(), offset: 0, stride: heads(q) },
        k: Heads { data: k.data(), offset: 0, stride: heads(k) },
        v: Heads { data: v.data(), offset: 0, stride: heads(v) },
    };
    cpu::decode(&problem, out.data_mut())?;
    Ok(out)
}

/// The extents, `tk` being the most tokens of a text, and P as a shift.
fn check(q: &Tensor, (k, v): (&Tensor, &Tensor), pages: &Pages) -> Result<(Size, u32)> {
    for x in [q, k, v] {
        x.expect_float(OP)?;
    }
    crate::ops::expect_same(OP, k, v)?;
    q.expect_beside(OP, k)?;
    let (qs, ks) = (q.shape(), k.shape());
    if qs.len() != 4 || qs[1] > cuda::DECODE_MAX {
        let expected = format!("[B, Tq, H, E] with at most {} queries of a text", cuda::DECODE_MAX);
        return Err(Error::Rank { op: OP, found: qs, expected });
    }
    let shift = pages.check(OP, k, qs[0])?;
    if qs[3] != ks[3] || ks[2] == 0 || !qs[2].is_multiple_of(ks[2]) {
        let rule = "head widths must be equal, and key-value heads divide the query heads";
        return Err(Error::Shape { op: OP, lhs: qs, rhs: ks, rule });
    }
    let tk = pages.max_pages() << shift;
    Ok((
        Size { batch: qs[0], tq: qs[1], tk, n_heads: qs[2], n_kv_heads: ks[2], width: qs[3] },
        shift,
    ))
}
