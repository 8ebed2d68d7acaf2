//! Few queries over many keys, as in generation: keys and values are read once, without packing.
//!
//! The order of additions is that of [`forward`](super::forward), so a query gives the same bits
//! here and in a long prompt. Blocks of [`BLOCK`] keys start at key 0 of the text, whatever the
//! mask, the pages and the number of queries:
//!
//! 1. A score is one chain of multiply-adds along E of the scaled query and the key.
//! 2. The weights of a block are relative to the largest score up to its end, so the maxima of all
//!    earlier blocks must be known.
//! 3. The sums of weights of a block (one per lane) and its weighted values (one chain along the
//!    keys) start at 0.
//! 4. They are added to the sums of the earlier blocks, which are first rescaled to the new
//!    maximum.
//!
//! Steps 1 and 3 read keys and values. They run for all blocks in parallel if there are fewer heads
//! than threads could use; steps 2 and 4 read little memory. "Flash decoding", in which each thread
//! has its own softmax over a part of the keys, would add in another order.

use std::ops::Range;

use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::math::exp;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use super::pack::{self, Rows};
use super::tile::Columns;
use super::{BLOCK, HeadsMut, LOWEST, Problem, SUMS, run_tasks};
use crate::{DType, Result};

/// Blocks of keys per task, where a head has several.
const CHUNK: usize = 8;
/// Vectors of scores, or of a value row, kept in registers.
const WIDE: usize = 4;

/// Computes the result of all queries, `out` `[B, Tq, H, E]`.
pub(in crate::ops::attention) fn decode(problem: &Problem<'_>, out: &mut [f32]) -> Result<()> {
    let size = problem.size;
    let n_heads = size.batch * size.n_kv_heads;
    let layout = PartialsLayout::new(problem);
    let mut parts = CpuBuffer::uninit(DType::F32, n_heads * layout.head)?;
    let parts = SharedMut::new(parts.as_mut_slice());
    let (data, stride) = (SharedMut::new(out), size.n_heads * size.width);
    let out = HeadsMut { data, offset: 0, stride };
    let job = Job { problem, layout, parts, out };
    let scratch = layout.n_rows * size.width + BLOCK * problem.padded_width();
    let (n_blocks, n_threads) = (layout.n_blocks, threads::n_threads());
    if n_blocks <= CHUNK || n_heads >= 4 * n_threads {
        // Tasks take several heads if they are small: waking a thread costs microseconds.
        let work = problem.n_keys.max(1) * size.width * layout.n_rows;
        let per_task = (1usize << 15).div_ceil(work.max(1)).min(n_heads.div_ceil(n_threads));
        return run_tasks(n_heads.div_ceil(per_task), scratch, |task, scratch| {
            for head in task * per_task..n_heads.min((task + 1) * per_task) {
                dispatch(Scores { job: &job, head, blocks: 0..n_blocks, scratch });
                dispatch(Values { job: &job, head, blocks: 0..n_blocks });
                dispatch(Combine { job: &job, head });
            }
        });
    }
    let n_chunks = n_blocks.div_ceil(CHUNK);
    let blocks = |task: usize| {
        let first = task % n_chunks * CHUNK;
        first..n_blocks.min(first + CHUNK)
    };
    run_tasks(n_heads * n_chunks, scratch, |task, scratch| {
        dispatch(Scores { job: &job, head: task / n_chunks, blocks: blocks(task), scratch });
    })?;
    threads::run(n_heads * n_chunks, |task| {
        dispatch(Values { job: &job, head: task / n_chunks, blocks: blocks(task) });
    });
    threads::run(n_heads, |head| dispatch(Combine { job: &job, head }));
    Ok(())
}

/// Positions of partial results, in floats: by key-value head, block of keys, and row (a query of a
/// head).
#[derive(Clone, Copy)]
struct PartialsLayout {
    n_blocks: usize,
    n_rows: usize,
    /// Size of a row of a block: scores or weights, sums per lane, weighted values, and the largest
    /// score.
    row: usize,
    head: usize,
}

/// Offsets of the parts of a row of a block.
const LANE_SUMS: usize = BLOCK;
const VALUES: usize = BLOCK + SUMS;

impl PartialsLayout {
    fn new(problem: &Problem<'_>) -> Self {
        let n_blocks = problem.n_keys.div_ceil(BLOCK).max(1);
        let n_rows = problem.heads_per_kv() * problem.size.tq;
        // One float for the largest score, and whole cache lines.
        let row = VALUES + problem.padded_width() + 16;
        Self { n_blocks, n_rows, row, head: n_blocks * n_rows * row }
    }

    fn at(&self, head: usize, block: usize, row: usize) -> usize {
        head * self.head + (block * self.n_rows + row) * self.row
    }
}

/// The inputs and partial results of one call, shared by all tasks.
struct Job<'a> {
    problem: &'a Problem<'a>,
    layout: PartialsLayout,
    parts: SharedMut<f32>,
    out: HeadsMut,
}

impl Job<'_> {
    /// Returns the batch and key-value head of a head counted through the batch.
    fn head(&self, head: usize) -> (usize, usize) {
        (head / self.problem.size.n_kv_heads, head % self.problem.size.n_kv_heads)
    }

    /// Returns the token (counted through the batch) and the head of the query of a row.
    fn query(&self, head: usize, row: usize) -> (usize, usize) {
        let (batch, kv_head) = self.head(head);
        let tq = self.problem.size.tq;
        (batch * tq + row % tq, kv_head * self.problem.heads_per_kv() + row / tq)
    }

    /// Returns the keys of a block that a row sees, relative to the block's first; `(0, 0)` if
    /// none.
    fn seen(&self, head: usize, row: usize, block: usize) -> (usize, usize) {
        let (token, _) = self.query(head, row);
        let key = block * BLOCK;
        let within = |x: i32| (x as usize).clamp(key, key + BLOCK) - key;
        let intervals = self.problem.intervals;
        let (lo, hi) = (within(intervals[2 * token]), within(intervals[2 * token + 1]));
        if lo < hi { (lo, hi) } else { (0, 0) }
    }

    /// Returns the smallest range that holds all keys of a block that some row sees.
    fn seen_by_any(&self, head: usize, block: usize) -> (usize, usize) {
        // Rows of different heads see the same.
        let seen = (0..self.problem.size.tq).map(|row| self.seen(head, row, block));
        let seen = seen.filter(|(lo, hi)| lo < hi);
        seen.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0))
    }

    /// The parts of a row of a block, without the largest score.
    ///
    /// # Safety
    /// No other task uses this block of this head at the moment.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn part(&self, head: usize, block: usize, row: usize) -> &mut [f32] {
        // SAFETY: promised by the caller.
        unsafe { self.parts.slice(self.layout.at(head, block, row), self.layout.row - 16) }
    }

    /// Returns the address of the largest score of a row in a block.
    fn largest_at(&self, head: usize, block: usize, row: usize) -> *mut f32 {
        let at = self.layout.at(head, block, row) + self.layout.row - 1;
        self.parts.ptr().wrapping_add(at)
    }

    /// The largest score of a row in a block that was written before.
    fn largest(&self, head: usize, block: usize, row: usize) -> f32 {
        // SAFETY: in bounds, written by an earlier step, and neither written again nor borrowed.
        unsafe { *self.largest_at(head, block, row) }
    }
}

/// Step 1: the scores of all queries of one key-value head in some blocks, and the largest of each
/// block.
struct Scores<'a> {
    job: &'a Job<'a>,
    head: usize,
    blocks: Range<usize>,
    scratch: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, head, blocks, scratch } = self;
        let (problem, n_rows) = (job.problem, job.layout.n_rows);
        let width = problem.size.width;
        let (batch, kv_head) = job.head(head);
        let (queries, keys) = scratch.split_at_mut(n_rows * width);
        let keys = &mut keys[..BLOCK * problem.padded_width()];
        for row in 0..n_rows {
            let (token, query_head) = job.query(head, row);
            let from = &problem.q.from(token, query_head, width)[..width];
            pack::put_row(s, from, problem.scale, &mut queries[row * width..][..width], false);
        }
        // Columns after the last key are multiplied too, but their scores are never read.
        keys.fill(0.0);
        let columns = Columns::new();
        for block in blocks {
            let (_, end) = job.seen_by_any(head, block);
            if end > 0 {
                let rows = problem.rows(&problem.k, batch, block * BLOCK, end, kv_head);
                pack::transpose_first(s, &rows, width, end, keys);
            }
            for first in (0..n_rows).step_by(2) {
                let n = (n_rows - first).min(2);
                if end > 0 {
                    let queries = &queries[first * width..][..n * width];
                    // SAFETY: this task owns these blocks.
                    let to = |i| unsafe { job.part(head, block, first + i) };
                    match n {
                        1 => scores::<S, 1>(s, queries, keys, [to(0)]),
                        _ => scores::<S, 2>(s, queries, keys, [to(0), to(1)]),
                    }
                }
                for row in first..first + n {
                    let seen = job.seen(head, row, block);
                    // SAFETY: as above.
                    unsafe {
                        let part = job.part(head, block, row);
                        let largest = largest(s, &columns, &part[..BLOCK], seen);
                        *job.largest_at(head, block, row) = largest;
                    }
                }
            }
        }
    }
}

/// `to[i][j] = Σₑ queries[i, e] keys[e, j]` for the keys of one block.
#[inline(always)]
#[expect(clippy::needless_pass_by_value, reason = "the borrows end with the call")]
fn scores<S: Simd, const M: usize>(s: S, queries: &[f32], keys: &[f32], to: [&mut [f32]; M]) {
    let width = queries.len() / M;
    assert!(keys.len() >= width * BLOCK && to.iter().all(|to| to.len() >= BLOCK));
    let n_vectors = (BLOCK / S::LANES).min(WIDE);
    for j in (0..BLOCK).step_by(n_vectors * S::LANES) {
        let mut acc = [[s.splat(0.0); WIDE]; M];
        for e in 0..width {
            let mut k = [s.splat(0.0); WIDE];
            for v in 0..WIDE {
                // SAFETY: WIDE vectors of at most 16 lanes from j are within the block.
                k[v] = unsafe { s.load(keys.as_ptr().add(e * BLOCK + j + v * S::LANES)) };
            }
            for i in 0..M {
                // SAFETY: row i has `width` numbers.
                let q = s.splat(unsafe { *queries.as_ptr().add(i * width + e) });
                for v in 0..WIDE {
                    acc[i][v] = s.fma(q, k[v], acc[i][v]);
                }
            }
        }
        for i in 0..M {
            for v in 0..WIDE {
                // SAFETY: as above.
                unsafe { s.store(to[i].as_mut_ptr().add(j + v * S::LANES), acc[i][v]) };
            }
        }
    }
}

/// The largest of the scores that are seen.
#[inline(always)]
fn largest<S: Simd>(s: S, columns: &Columns, scores: &[f32], (lo, hi): (usize, usize)) -> f32 {
    assert!(scores.len() >= BLOCK);
    let mut top = s.splat(LOWEST);
    for j in (lo / S::LANES * S::LANES..hi).step_by(S::LANES) {
        // SAFETY: j + lanes <= BLOCK.
        let x = unsafe { s.load(scores.as_ptr().add(j)) };
        top = s.max(top, columns.select(s, j, (lo, hi), x, top));
    }
    s.hmax(top)
}

/// Steps 2 and 3: weights, their sums, and weighted values of some blocks. The running maximum
/// comes from the maxima of the earlier blocks.
struct Values<'a> {
    job: &'a Job<'a>,
    head: usize,
    blocks: Range<usize>,
}

impl Kernel for Values<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, head, blocks } = self;
        let problem = job.problem;
        let (batch, kv_head) = job.head(head);
        let (width, padded) = (problem.size.width, problem.padded_width());
        let columns = Columns::new();
        for row in 0..job.layout.n_rows {
            let before = (0..blocks.start).map(|block| job.largest(head, block, row));
            let mut top = before.fold(LOWEST, f32::max);
            for block in blocks.clone() {
                top = top.max(job.largest(head, block, row));
                let seen = job.seen(head, row, block);
                if seen.0 < seen.1 {
                    // SAFETY: this task owns these blocks.
                    let part = unsafe { job.part(head, block, row) };
                    let (weights, sums) = part.split_at_mut(LANE_SUMS);
                    weigh(s, &columns, weights, seen, top, &mut sums[..SUMS]);
                }
            }
        }
        for block in blocks {
            let (_, end) = job.seen_by_any(head, block);
            let rows = problem.rows(&problem.v, batch, block * BLOCK, end, kv_head);
            for row in 0..job.layout.n_rows {
                let (lo, hi) = job.seen(head, row, block);
                if lo < hi {
                    // SAFETY: as above.
                    let part = unsafe { job.part(head, block, row) };
                    let (weights, values) = part.split_at_mut(VALUES);
                    weighted(s, &weights[..BLOCK], &rows, (lo, hi), width, &mut values[..padded]);
                }
            }
        }
    }
}

/// Replaces scores by `exp(score − top)`, 0 if masked, and writes their sums per lane to `sums`.
#[inline(always)]
fn weigh<S: Simd>(
    s: S,
    columns: &Columns,
    scores: &mut [f32],
    (lo, hi): (usize, usize),
    top: f32,
    sums: &mut [f32],
) {
    assert!(scores.len() >= BLOCK && sums.len() >= SUMS);
    let (zero, top) = (s.splat(0.0), s.splat(top));
    let mut sum = zero;
    for j in (0..BLOCK).step_by(S::LANES) {
        // SAFETY: j + lanes <= BLOCK.
        unsafe {
            let at = scores.as_mut_ptr().add(j);
            let mut p = zero;
            if j < hi && lo < j + S::LANES {
                p = exp(s, s.sub(s.load(at), top));
                p = columns.select(s, j, (lo, hi), p, zero);
            }
            s.store(at, p);
            sum = s.add(sum, p);
        }
    }
    // SAFETY: SUMS is at least the number of lanes.
    unsafe { s.store(sums.as_mut_ptr(), sum) };
}

/// `out = Σⱼ weights[j] values[j]` over the rows `lo..hi` of a block.
#[inline(always)]
fn weighted<S: Simd>(
    s: S,
    weights: &[f32],
    values: &Rows<'_>,
    (lo, hi): (usize, usize),
    width: usize,
    out: &mut [f32],
) {
    assert!(values.hold(hi, width) && weights.len() >= hi && out.len() >= width);
    for c in (0..width).step_by(WIDE * S::LANES) {
        let n = |v: usize| width.saturating_sub(c + v * S::LANES).min(S::LANES);
        let mut acc = [s.splat(0.0); WIDE];
        if c + WIDE * S::LANES <= width {
            for j in lo..hi {
                let (weight, row) = (s.splat(weights[j]), values.row(j));
                for v in 0..WIDE {
                    // SAFETY: these numbers lie within row j by the assertion.
                    let x = unsafe { s.load(row.add(c + v * S::LANES)) };
                    acc[v] = s.fma(weight, x, acc[v]);
                }
            }
        } else {
            for j in lo..hi {
                let weight = s.splat(weights[j]);
                for v in 0..WIDE {
                    if n(v) > 0 {
                        // SAFETY: as above.
                        let x = unsafe { s.load_n(values.row(j).add(c + v * S::LANES), n(v)) };
                        acc[v] = s.fma(weight, x, acc[v]);
                    }
                }
            }
        }
        for v in 0..WIDE {
            if n(v) == 0 {
                continue;
            }

            // SAFETY: `out` has `width` numbers.
            unsafe { s.store_n(out.as_mut_ptr().add(c + v * S::LANES), acc[v], n(v)) };
        }
    }
}

/// Step 4: adds up the blocks of all rows of a head.
struct Combine<'a> {
    job: &'a Job<'a>,
    head: usize,
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, head } = self;
        let width = job.problem.size.width;
        for row in 0..job.layout.n_rows {
            let (token, query_head) = job.query(head, row);
            // SAFETY: each row is combined once.
            let out = unsafe { job.out.row(token, query_head, width) };
            out.fill(0.0);
            let (mut top, mut sums) = (LOWEST, s.splat(0.0));
            for block in 0..job.layout.n_blocks {
                let (lo, hi) = job.seen(head, row, block);
                if lo >= hi {
                    continue;
                }
                let new = top.max(job.largest(head, block, row));
                let shrink = exp(s, s.sub(s.splat(top), s.splat(new)));
                top = new;
                // SAFETY: this step alone uses the parts of this head now.
                let part = unsafe { job.part(head, block, row) };
                // SAFETY: SUMS floats, at least as many as lanes.
                sums = s.fma(sums, shrink, unsafe { s.load(part[LANE_SUMS..][..SUMS].as_ptr()) });
                add_shrunk(s, &part[VALUES..][..width], shrink, out);
            }
            let total = s.sum(sums);
            let factor = s.splat(if total > 0.0 { 1.0 / total } else { 0.0 });
            for c in (0..width).step_by(S::LANES) {
                let n = (width - c).min(S::LANES);
                // SAFETY: `n` numbers from c are in the row.
                unsafe {
                    let at = out.as_mut_ptr().add(c);
                    s.store_n(at, s.mul(s.load_n(at, n), factor), n);
                }
            }
        }
    }
}

/// `out = out · shrink + values`, rounded after each.
#[inline(always)]
fn add_shrunk<S: Simd>(s: S, values: &[f32], shrink: S::V, out: &mut [f32]) {
    let width = out.len();
    assert!(values.len() >= width);
    for c in (0..width).step_by(S::LANES) {
        let n = (width - c).min(S::LANES);
        // SAFETY: `n` numbers from c are in both rows.
        unsafe {
            let at = out.as_mut_ptr().add(c);
            let sum = s.add(s.mul(s.load_n(at, n), shrink), s.load_n(values.as_ptr().add(c), n));
            s.store_n(at, sum, n);
        }
    }
}
