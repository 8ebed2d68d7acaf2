//! Attention over keys and values that lie in [`Pages`].

use super::cpu::{self, Heads, Paged, Problem};
use super::{Mask, OP, Size, check_scale, cuda};
use crate::autograd::records;
use crate::pages::Pages;
use crate::{Error, Result, Tensor};

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
    if mask.has_intervals() {
        return refuse(
            "in a mask with segments or prefixes",
            "a causal mask, or one that sees all",
        );
    }
    let mut out = q.like(q.shape())?;
    if out.shape().n_elements() == 0 {
        return Ok(out);
    }
    let rule = mask.rule(size.batch, size.tk)?;
    if q.is_cuda() {
        if size.width > 256 {
            let (value, expected) = (size.width.to_string(), "at most 256 on a GPU");
            return Err(Error::Argument { op: OP, name: "head width", value, expected });
        }
        cuda::decode_paged([q, k, v], size, rule, (pages, shift), scale, &mut out)?;
        return Ok(out);
    }
    let lengths = pages.lengths().ids();
    let intervals = mask.intervals_at_ends(lengths, size.tq);
    let heads = |x: &Tensor| x.shape()[2] * size.width;
    let problem = Problem {
        size,
        n_keys: lengths.iter().copied().max().unwrap_or(0) as usize,
        scale,
        intervals: &intervals,
        pages: Some(Paged { table: pages.table().ids(), max: pages.max_pages(), shift }),
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
