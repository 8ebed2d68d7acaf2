//! The forward pass: scores, online softmax, weighted values, tile by tile.
//!
//! The online softmax (Milakov and Gimelshein 2018, <https://arxiv.org/abs/1805.02867>; Dao 2023,
//! <https://arxiv.org/abs/2307.08691>) needs no whole row of scores. Each query has a running
//! maximum m, a sum of weights l and an output o `[E]`. Each tile of keys j updates them:
//!
//! ```text
//! s_j = scale q · k_j
//! m'  = max(m, max_j s_j)
//! p_j = exp(s_j − m')
//! l   = l exp(m − m') + Σ_j p_j
//! o   = o exp(m − m') + Σ_j p_j v_j
//! ```
//!
//! At the end `out = o / l`, and `lse = m + ln l` is saved for backward.
//!
//! The bits of a query do not depend on the queries beside it or on their number. Its tiles of keys
//! start at key 0 of the text, each row has its own sums, and keys that only other rows see add
//! zeros. [`decode`](super::decode), for few queries, has the same order of additions.

use lehr_kernels::math::exp;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::SharedMut;

use super::pack::{self, Rows};
use super::tile::{self, Columns, Spans};
use super::{BLOCK, HeadsMut, LOWEST, Problem, QueryBlock, SUMS, cut, key_blocks, run_tasks};
use crate::Result;

/// `out = softmax(scale q kᵀ + mask) v` by groups of blocks of queries, which are independent.
pub(super) fn forward(
    problem: &Problem<'_>,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) -> Result<()> {
    let size = problem.size;
    let (data, stride) = (SharedMut::new(out), size.n_heads * size.width);
    let out = HeadsMut { data, offset: 0, stride };
    let lse = lse.map(SharedMut::new);
    let n_groups = problem.n_blocks().div_ceil(problem.group_size());
    let n_heads = size.batch * size.n_kv_heads;
    let padded = problem.padded_width();
    let per_block = 2 * BLOCK * padded + BLOCK * (SUMS + 1);
    let scratch = problem.group_size() * per_block + 2 * BLOCK * padded + BLOCK * BLOCK;
    run_tasks(n_groups * n_heads, scratch, |index, scratch| {
        // Under a causal mask the last queries have the most work. They start first, so that no
        // thread is left with a long task at the end.
        let group = n_groups - 1 - index / n_heads;
        let (batch, kv_head) = (index % n_heads / size.n_kv_heads, index % size.n_kv_heads);
        let blocks: Vec<QueryBlock> = problem.group(batch, kv_head, group).collect();
        dispatch(Forward { problem, blocks: &blocks, kv_head, out, lse, scratch });
    })
}

/// One group of blocks against all keys they see.
struct Forward<'a> {
    problem: &'a Problem<'a>,
    blocks: &'a [QueryBlock],
    kv_head: usize,
    out: HeadsMut,
    lse: Option<SharedMut<f32>>,
    scratch: &'a mut [f32],
}

/// The running values of one block of queries.
pub(super) struct State<'a> {
    /// Scaled queries, `[padded][BLOCK]`.
    pub(super) q: &'a mut [f32],
    /// o: weighted sums of values so far, `[BLOCK][padded]`.
    pub(super) out: &'a mut [f32],
    /// m: running maximum per row.
    pub(super) max: &'a mut [f32],
    /// l: running sum per row and lane. Lanes are added at the end only.
    pub(super) sums: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, blocks, kv_head, out, lse, mut scratch } = self;
        let (width, padded) = (problem.size.width, problem.padded_width());
        let k = cut(&mut scratch, BLOCK * padded);
        let v = cut(&mut scratch, BLOCK * padded);
        let scores = cut(&mut scratch, BLOCK * BLOCK);
        let mut states: [Option<State<'_>>; 4] = [None, None, None, None];
        for (block, state) in blocks.iter().zip(&mut states) {
            let q = cut(&mut scratch, BLOCK * padded);
            let token = block.batch * problem.size.tq + block.start;
            let from = problem.q.from(token, block.head, width);
            let from = Rows::strided(from, problem.q.stride, block.n);
            pack::transposed(s, &from, width, problem.scale, q);
            let out = cut(&mut scratch, BLOCK * padded);
            let max = cut(&mut scratch, BLOCK);
            let sums = cut(&mut scratch, BLOCK * SUMS);
            out.fill(0.0);
            max.fill(LOWEST);
            sums.fill(0.0);
            *state = Some(State { q, out, max, sums });
        }
        let columns = Columns::new();
        // Keys after the last visible one may have no page.
        let end = blocks.iter().map(|b| b.reach.1).max().unwrap_or(0);
        for key in key_blocks(blocks) {
            let n = BLOCK.min(end - key);
            let rows = |of| problem.rows(of, blocks[0].batch, key, n, kv_head);
            pack::transposed(s, &rows(&problem.k), width, 1.0, k);
            pack::rows(s, &rows(&problem.v), width, v);
            for (block, state) in blocks.iter().zip(states.iter_mut().flatten()) {
                if !block.reaches(key) {
                    continue;
                }
                let spans = Spans::new(problem, block, key);
                tile::scores(s, &spans, width, state.q, k, scores);
                softmax(s, &columns, &spans, scores, state);
                tile::weighted(s, &spans, scores, v, state.out);
            }
        }
        for (block, state) in blocks.iter().zip(states.iter().flatten()) {
            finish(s, problem, block, state, out, lse);
        }
    }
}

/// Turns scores into weights relative to the new maximum, and rescales sums and outputs to it.
///
/// All rows are done in three passes (maxima, factors, weights), so that the factors of 64 rows are
/// a few vectors of exponentials instead of 64 single ones.
#[inline(always)]
pub(super) fn softmax<S: Simd>(
    s: S,
    columns: &Columns,
    spans: &Spans,
    scores: &mut [f32],
    state: &mut State<'_>,
) {
    let lanes = S::LANES;
    let padded = state.out.len() / BLOCK;
    assert!(scores.len() >= BLOCK * BLOCK);
    assert!(state.max.len() == BLOCK && state.sums.len() == BLOCK * SUMS);
    let mut max = [0.0f32; BLOCK];
    for r in 0..BLOCK {
        let (lo, hi) = spans.rows[r];
        let mut top = s.splat(LOWEST);
        for j in (lo / lanes * lanes..hi).step_by(lanes) {
            // SAFETY: j + lanes <= BLOCK.
            let x = unsafe { s.load(scores.as_ptr().add(r * BLOCK + j)) };
            top = s.max(top, columns.select(s, j, (lo, hi), x, top));
        }
        max[r] = s.hmax(top).max(state.max[r]);
    }
    let mut shrink = [0.0f32; BLOCK];
    for r in (0..BLOCK).step_by(lanes) {
        // SAFETY: r + lanes <= BLOCK.
        unsafe {
            let (old, new) = (s.load(state.max.as_ptr().add(r)), s.load(max.as_ptr().add(r)));
            s.store(shrink.as_mut_ptr().add(r), exp(s, s.sub(old, new)));
        }
    }
    let zero = s.splat(0.0);
    for r in 0..BLOCK {
        let (lo, hi) = spans.rows[r];
        let top = s.splat(max[r]);
        let mut sum = zero;
        for j in (0..BLOCK).step_by(lanes) {
            // SAFETY: j + lanes <= BLOCK.
            unsafe {
                let at = scores.as_mut_ptr().add(r * BLOCK + j);
                let mut p = zero;
                if j < hi && lo < j + lanes {
                    p = exp(s, s.sub(s.load(at), top));
                    p = columns.select(s, j, (lo, hi), p, zero);
                }
                s.store(at, p);
                sum = s.add(sum, p);
            }
        }
        // SAFETY: row r of the sums and of the output; `padded` is a multiple of lanes.
        unsafe {
            let at = state.sums.as_mut_ptr().add(r * SUMS);
            s.store(at, s.fma(s.load(at), s.splat(shrink[r]), sum));
            if max[r] > state.max[r] {
                for c in (0..padded).step_by(lanes) {
                    let at = state.out.as_mut_ptr().add(r * padded + c);
                    s.store(at, s.mul(s.load(at), s.splat(shrink[r])));
                }
            }
        }
    }
    state.max.copy_from_slice(&max);
}

/// Divides the outputs by the sums and writes the rows of a block.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    block: &QueryBlock,
    state: &State<'_>,
    out: HeadsMut,
    lse: Option<SharedMut<f32>>,
) {
    let size = problem.size;
    let padded = state.out.len() / BLOCK;
    for r in 0..block.n {
        // SAFETY: SUMS floats per row, at least as many as lanes.
        let total = s.sum(unsafe { s.load(state.sums[r * SUMS..][..SUMS].as_ptr()) });
        let factor = if total > 0.0 { 1.0 / total } else { 0.0 };
        let token = block.batch * size.tq + block.start + r;
        // SAFETY: this head of this token belongs to this task.
        let row = unsafe { out.row(token, block.head, size.width) };
        pack::put_row(s, &state.out[r * padded..], factor, row, false);
        if let Some(lse) = lse {
            let at = (block.batch * size.n_heads + block.head) * size.tq + block.start + r;
            // SAFETY: as above.
            let lse = unsafe { lse.slice(at, 1) };
            lse[0] = if total > 0.0 { state.max[r] + total.ln() } else { 0.0 };
        }
    }
}
