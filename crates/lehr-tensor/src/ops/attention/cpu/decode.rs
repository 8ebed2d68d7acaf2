//! Few queries against many keys, as in generation: keys and values are read once from where they
//! lie, and long caches are cut into chunks so that every core has a share.

use std::ops::Range;

use super::{HeadsMut, Paged, Problem, pack, run_tasks};
use crate::DType;
use crate::Result;
use crate::cpu::buffer::CpuBuffer;
use crate::cpu::gemm::vector::dot;
use crate::cpu::math::exp;
use crate::cpu::simd::{Kernel, Simd, dispatch};
use crate::cpu::threads::{self, SharedMut};

/// Keys per task.
const CHUNK: usize = 512;
/// Keys that all rows visit before the next ones.
const STEP: usize = 64;
/// Vectors of a value row kept in registers.
const WIDE: usize = 4;

/// Partial results per chunk of keys, then their sums in the order of the chunks.
pub(in crate::ops::attention) fn decode(problem: &Problem<'_>, out: &mut [f32]) -> Result<()> {
    let size = problem.size;
    let n_chunks = problem.n_keys.div_ceil(CHUNK).max(1);
    // Rows in the order [B, K, H / K, Tq]; maximum, sum and weighted values for each.
    let n_rows = problem.heads_per_kv() * size.tq;
    let part = problem.padded_width() + 2;
    let n_heads = size.batch * size.n_kv_heads;
    let mut parts = CpuBuffer::uninit(DType::F32, n_heads * n_rows * n_chunks * part)?;
    let shared = SharedMut::new(parts.as_mut_slice());
    // Tasks take several heads if they are small: waking a thread costs microseconds.
    let work = problem.n_keys.clamp(1, CHUNK) * size.width * n_rows;
    let per_task = (1usize << 15).div_ceil(work.max(1));
    let n_parts = n_heads * n_chunks;
    run_tasks(n_parts.div_ceil(per_task), n_rows * CHUNK, |task, scores| {
        for index in task * per_task..n_parts.min((task + 1) * per_task) {
            // SAFETY: a task owns the parts of its chunks.
            let parts = unsafe { shared.slice(index * n_rows * part, n_rows * part) };
            let (head, chunk) = (index / n_chunks, index % n_chunks);
            dispatch(Chunk { problem, head, first: chunk * CHUNK, parts, scores });
        }
    })?;
    let parts = parts.as_slice();
    let (data, stride) = (SharedMut::new(out), size.n_heads * size.width);
    let out = HeadsMut { data, offset: 0, stride };
    let len = n_chunks * n_rows * part;
    let per_task = (1usize << 15).div_ceil(len);
    threads::run(n_heads.div_ceil(per_task), |task| {
        for head in task * per_task..n_heads.min((task + 1) * per_task) {
            let parts = &parts[head * len..][..len];
            for row in 0..n_rows {
                dispatch(Combine { problem, parts, head, row, out });
            }
        }
    });
    Ok(())
}

/// All queries of one key-value head against one chunk of keys.
struct Chunk<'a> {
    problem: &'a Problem<'a>,
    /// Key-value head, counted through the batch.
    head: usize,
    /// The first key.
    first: usize,
    /// One part per row.
    parts: &'a mut [f32],
    scores: &'a mut [f32],
}

impl Kernel for Chunk<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, head, first, parts, scores } = self;
        let size = problem.size;
        let (batch, kv_head) = (head / size.n_kv_heads, head % size.n_kv_heads);
        if parts.is_empty() || first >= problem.n_keys {
            return parts.fill(0.0);
        }
        let (k_stride, v_stride) = (problem.k.stride, problem.v.stride);
        let part = problem.padded_width() + 2;
        let n = CHUNK.min(problem.n_keys - first);
        // A few keys meet all rows while they are in the first-level cache.
        for j0 in (0..n).step_by(STEP) {
            for (row, scores) in scores.chunks_exact_mut(CHUNK).enumerate() {
                let (token, query_head) = row_position(problem, batch, kv_head, row);
                let q = &problem.q.from(token, query_head, size.width)[..size.width];
                let seen = part_of(visible(problem, token, first), j0);
                for (neighbours, token) in pieces(problem, batch, first, seen) {
                    let keys = problem.k.from(token, kv_head, size.width);
                    for (i, score) in scores[neighbours].iter_mut().enumerate() {
                        *score = dot(s, q, &keys[i * k_stride..][..size.width]) * problem.scale;
                    }
                }
            }
        }
        for (row, part) in parts.chunks_exact_mut(part).enumerate() {
            let (token, _) = row_position(problem, batch, kv_head, row);
            let seen = &mut scores[row * CHUNK..][visible(problem, token, first)];
            part.fill(0.0);
            part[0] = seen.iter().copied().fold(f32::MIN, f32::max);
            part[1] = weights(s, seen, part[0]);
        }
        for j0 in (0..n).step_by(STEP) {
            for (row, part) in parts.chunks_exact_mut(part).enumerate() {
                let (token, _) = row_position(problem, batch, kv_head, row);
                let seen = part_of(visible(problem, token, first), j0);
                for (neighbours, token) in pieces(problem, batch, first, seen) {
                    let values = problem.v.from(token, kv_head, size.width);
                    let weights = &scores[row * CHUNK..][neighbours];
                    add_weighted(s, weights, values, v_stride, size.width, &mut part[2..]);
                }
            }
        }
    }
}

/// The keys of a chunk that a query sees, relative to the chunk's first.
fn visible(problem: &Problem<'_>, token: usize, first: usize) -> Range<usize> {
    let within = |x: i32| (x as usize).clamp(first, first + CHUNK) - first;
    within(problem.intervals[2 * token])..within(problem.intervals[2 * token + 1])
}

/// The keys of a range, counted from key `first` of a text, in pieces that lie one behind the
/// other: all of them, or what is in a page; and the token, counted through the buffer, with which
/// each begins.
#[inline(always)]
fn pieces(
    problem: &Problem<'_>,
    batch: usize,
    first: usize,
    range: Range<usize>,
) -> impl Iterator<Item = (Range<usize>, usize)> {
    let (pages, tk, mut at) = (problem.pages, problem.size.tk, range.start);
    std::iter::from_fn(move || {
        let start = at;
        if start >= range.end {
            return None;
        }
        let Some(Paged { table, max, shift }) = pages else {
            at = range.end;
            return Some((start..at, batch * tk + first + start));
        };
        let (key, n) = (first + start, 1 << shift);
        at = range.end.min(start + n - key % n);
        Some((start..at, table[batch * max + key / n] as usize * n + key % n))
    })
}

/// The part of a range within the [`STEP`] keys from `start` on.
fn part_of(range: Range<usize>, start: usize) -> Range<usize> {
    range.start.max(start)..range.end.min(start + STEP)
}

/// Token (counted through the batch) and head of the query of a row.
fn row_position(problem: &Problem<'_>, batch: usize, kv_head: usize, row: usize) -> (usize, usize) {
    let tq = problem.size.tq;
    (batch * tq + row % tq, kv_head * problem.heads_per_kv() + row / tq)
}

/// `exp(score − top)` in place, and their sum.
#[inline(always)]
fn weights<S: Simd>(s: S, scores: &mut [f32], top: f32) -> f32 {
    let mut sum = s.splat(0.0);
    let top = s.splat(top);
    for j in (0..scores.len()).step_by(S::LANES) {
        let n = (scores.len() - j).min(S::LANES);
        // SAFETY: `n` floats from j are in bounds.
        unsafe {
            let at = scores.as_mut_ptr().add(j);
            s.store_n(at, exp(s, s.sub(s.load_n(at, n), top)), n);
            sum = s.add(sum, s.load_n(at, n));
        }
    }
    s.sum(sum)
}

/// `out += Σⱼ weights[j] values[j]` for rows of `width` floats, `stride` apart.
#[inline(always)]
fn add_weighted<S: Simd>(
    s: S,
    weights: &[f32],
    values: &[f32],
    stride: usize,
    width: usize,
    out: &mut [f32],
) {
    assert!((weights.len() - 1) * stride + width <= values.len() && out.len() >= width);
    for c in (0..width).step_by(WIDE * S::LANES) {
        let mut acc = [s.splat(0.0); WIDE];
        for v in 0..WIDE {
            let at = c + v * S::LANES;
            let n = width.saturating_sub(at).min(S::LANES);
            if n > 0 {
                // SAFETY: `n` floats from `at` lie within the row.
                acc[v] = unsafe { s.load_n(out.as_ptr().add(at), n) };
            }
        }
        for (j, weight) in weights.iter().enumerate() {
            let weight = s.splat(*weight);
            for v in 0..WIDE {
                let at = c + v * S::LANES;
                let n = width.saturating_sub(at).min(S::LANES);
                if n > 0 {
                    // SAFETY: `n` floats from `at` lie within row j.
                    let x = unsafe { s.load_n(values.as_ptr().add(j * stride + at), n) };
                    acc[v] = s.fma(weight, x, acc[v]);
                }
            }
        }
        for v in 0..WIDE {
            let at = c + v * S::LANES;
            let n = width.saturating_sub(at).min(S::LANES);
            if n > 0 {
                // SAFETY: `n` floats from `at` lie within the row.
                unsafe { s.store_n(out.as_mut_ptr().add(at), acc[v], n) };
            }
        }
    }
}

/// Adds up the chunks of one row.
struct Combine<'a> {
    problem: &'a Problem<'a>,
    parts: &'a [f32],
    head: usize,
    row: usize,
    out: HeadsMut,
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, parts, head, row, out } = self;
        let size = problem.size;
        let (batch, kv_head) = (head / size.n_kv_heads, head % size.n_kv_heads);
        let (token, query_head) = row_position(problem, batch, kv_head, row);
        // SAFETY: each row is combined once.
        let to = unsafe { out.row(token, query_head, size.width) };
        let part = problem.padded_width() + 2;
        let n_rows = problem.heads_per_kv() * size.tq;
        let rows = parts.chunks_exact(part).skip(row).step_by(n_rows);
        // A chunk without a visible key has the sum 0.
        let seen = rows.filter(|p| p[1] > 0.0);
        let top = seen.clone().fold(f32::MIN, |top, p| top.max(p[0]));
        let total: f32 = seen.clone().map(|p| (p[0] - top).exp() * p[1]).sum();
        to.fill(0.0);
        for part in seen {
            pack::put_row(s, &part[2..], (part[0] - top).exp() / total, to, true);
        }
    }
}
