//! Attention over keys and values in [`Pages`].

use super::cpu::{self, Heads, Paged, Problem};
use super::{AttentionSize, Inputs, Mask, OP, check_scale, cuda};
use crate::autograd::will_record;
use crate::inplace::gather_pages;
use crate::pages::Pages;
use crate::{Error, Result, Tensor};

/// Computes [`Tensor::attention`] of `q [B, Tq, H, E]` over pools `k` and `v` `[n_pages, P, K, E]`,
/// for masks with pages. The queries are the last tokens of each sequence.
///
/// The CPU reads the pages in place, and so does a GPU for few queries. For many queries, whose
/// products cost far more than a copy, a GPU first copies keys and values into order.
pub(super) fn attention(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    (mask, pages): (&Mask, &Pages),
    scale: f32,
) -> Result<Tensor> {
    let (size, shift) = check(q, (k, v), pages)?;
    check_scale(scale)?;
    check_use(&[q, k, v], mask)?;
    let mut out = q.like(q.shape())?;
    if out.shape().n_elements() == 0 {
        return Ok(out);
    }
    let rule = mask.rule(size.batch, size.tq, size.tk)?;
    let host_lengths = pages.host_lengths();
    // A query at or after the end of the prefix sees what a causal mask shows.
    let sees_ahead = match host_lengths {
        Some(lengths) => mask.prefix_reaches_beyond(lengths, size.tq),
        None => mask.has_intervals(),
    };
    if q.is_cuda() && size.tq <= cuda::DECODE_MAX && !sees_ahead {
        cuda::decode_paged([q, k, v], size, rule, (pages, shift), scale, &mut out)?;
        return Ok(out);
    }
    let Some(lengths) = host_lengths else {
        let expected = "at most 8 queries without a prefix, or lengths that the host knows too";
        return Err(refused("whose lengths only the GPU knows", expected));
    };
    let intervals = mask.intervals_at_ends(lengths, size.tq);
    let heads = |x: &Tensor| x.shape()[2] * size.width;
    let n_keys = lengths.iter().copied().max().unwrap_or(0) as usize;
    if !q.is_cuda() {
        let (table, max) = (pages.table().ids(), pages.max_pages());
        let problem = Problem {
            in_bf16: false,
            size,
            n_keys,
            scale,
            intervals: &intervals,
            pages: Some(Paged { table, max, shift }),
            q: Heads { data: q.data(), offset: 0, stride: heads(q) },
            k: Heads { data: k.data(), offset: 0, stride: heads(k) },
            v: Heads { data: v.data(), offset: 0, stride: heads(v) },
        };
        cpu::forward(&problem, out.data_mut(), None)?;
        return Ok(out);
    }
    let rule = cuda::Seen::by_rule(rule, n_keys);
    // A rule describes one sequence without a prefix; other cases need intervals.
    let seen = match size.batch == 1 && !sees_ahead {
        true => rule,
        false => {
            let intervals = Tensor::from_ids(&intervals, [size.batch, size.tq, 2])?;
            rule.with_intervals(intervals.to_device(q.device())?)
        }
    };
    let [k, v] = gather_pages([k, v], pages, n_keys)?;
    let inputs = Inputs::Separate { q: q.clone(), k, v };
    cuda::forward(&inputs, AttentionSize { tk: n_keys, ..size }, &seen, scale, &mut out, None)?;
    Ok(out)
}

/// Refuses gradients, and masks that pages do not support.
fn check_use(inputs: &[&Tensor], mask: &Mask) -> Result<()> {
    if will_record(inputs) {
        return Err(refused("beside inputs that want gradients", "a call inside of no_grad"));
    }
    if mask.has_segments() || mask.has_leading_keys() {
        let expected = "a mask without segments and leading keys";
        return Err(refused("in a mask with segments or leading keys", expected));
    }
    Ok(())
}

fn refused(value: &str, expected: &'static str) -> Error {
    Error::Argument { op: OP, name: "pages", value: value.to_owned(), expected }
}

/// Returns the dimensions, with `tk` as the largest number of tokens of a text, and P as a shift.
fn check(q: &Tensor, (k, v): (&Tensor, &Tensor), pages: &Pages) -> Result<(AttentionSize, u32)> {
    for x in [q, k, v] {
        x.expect_float(OP)?;
    }
    crate::ops::expect_same(OP, k, v)?;
    q.expect_beside(OP, k)?;
    let (qs, ks) = (q.shape(), k.shape());
    if qs.len() != 4 {
        let expected = "[B, Tq, H, E]".to_owned();
        return Err(Error::Rank { op: OP, found: qs, expected });
    }
    let shift = pages.check(OP, k, qs[0])?;
    if qs[3] != ks[3] || ks[2] == 0 || !qs[2].is_multiple_of(ks[2]) {
        let rule = "head widths must be equal, and key-value heads divide the query heads";
        return Err(Error::Shape { op: OP, lhs: qs, rhs: ks, rule });
    }
    if q.is_cuda() && qs[3] > 256 {
        let (value, expected) = (qs[3].to_string(), "at most 256 on a GPU");
        return Err(Error::Argument { op: OP, name: "head width", value, expected });
    }
    let tk = pages.max_pages() << shift;
    Ok((
        AttentionSize {
            batch: qs[0],
            tq: qs[1],
            tk,
            n_heads: qs[2],
            n_kv_heads: ks[2],
            width: qs[3],
        },
        shift,
    ))
}
