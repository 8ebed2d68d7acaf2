//! The backward pass: weights are recomputed tile by tile from q, k and the saved log-sum-exps.
//!
//! For a tile of 64 queries and 64 keys (Dao 2023, <https://arxiv.org/abs/2307.08691>):
//!
//! ```text
//! S  = scale Q Kᵀ         [64, 64]
//! P  = exp(S − lse)       [64, 64]   the final weights: no running maximum is needed
//! dV += Pᵀ dO             [64, E]
//! dP = dO Vᵀ              [64, 64]
//! dS = P (dP − delta)     [64, 64]   delta = Σₑ dO O per query
//! dQ += scale dS K        [64, E]
//! dK += scale dSᵀ Q       [64, E]
//! ```
//!
//! The derivative of the softmax needs `Σⱼ P dP` per query. It equals delta, because `Σⱼ P V = O`,
//! so it is known before the first tile.
//!
//! dQ sums over keys, dK and dV over queries and over the heads that share keys. One task does all
//! queries of one key-value head in order, so each sum has one order and no two tasks write the
//! same rows. The scale is in the packed queries, so only dQ is multiplied by it at the end.

use lehr_kernels::gemm::vector::dot;
use lehr_kernels::math::exp;
use lehr_kernels::simd::{Kernel, Simd, dispatch};

use super::pack::{self, Rows};
use super::rounded;
use super::tile::{self, Columns, Spans};
use super::{BLOCK, Heads, HeadsMut, Problem, QueryBlock, cut, key_blocks, run_tasks};
use crate::Result;

/// The saved results of forward and their gradient: `[B, Tq, H, E]`, and `lse` `[B, H, Tq]`.
pub(in crate::ops::attention) struct Saved<'a> {
    pub(in crate::ops::attention) out: &'a [f32],
    pub(in crate::ops::attention) lse: &'a [f32],
    pub(in crate::ops::attention) dy: &'a [f32],
}

/// Writes the wanted gradients of q, k and v, or adds them if `add`.
pub(in crate::ops::attention) fn backward(
    problem: &Problem<'_>,
    saved: &Saved<'_>,
    grads: [Option<HeadsMut>; 3],
    add: bool,
) -> Result<()> {
    let size = problem.size;
    if size.width == 0 {
        return Ok(());
    }
    if problem.in_bf16 {
        return rounded::backward(problem, saved, grads, add);
    }
    let tile = BLOCK * problem.padded_width();
    let per_block = 3 * tile + 2 * BLOCK;
    let scratch = problem.group_size() * per_block + 5 * tile + 2 * BLOCK * BLOCK;
    run_tasks(size.batch * size.n_kv_heads, scratch, |index, scratch| {
        let (batch, kv_head) = (index / size.n_kv_heads, index % size.n_kv_heads);
        dispatch(Backward { problem, saved, grads, add, batch, kv_head, scratch });
    })
}

/// The work of one task: a key-value head with all its queries.
struct Backward<'a> {
    problem: &'a Problem<'a>,
    saved: &'a Saved<'a>,
    grads: [Option<HeadsMut>; 3],
    add: bool,
    batch: usize,
    kv_head: usize,
    scratch: &'a mut [f32],
}

/// The packed values of one block of queries: `[padded][BLOCK]`, and `dq` `[BLOCK][padded]`.
struct State<'a> {
    /// Scaled queries.
    q: &'a mut [f32],
    dy: &'a mut [f32],
    dq: &'a mut [f32],
    lse: &'a mut [f32],
    /// `Σ dO O` per row.
    delta: &'a mut [f32],
}

/// Tiles of one block of keys.
struct Keys<'a> {
    /// `[padded][BLOCK]`, like `v`, `dk` and `dv`.
    k: &'a mut [f32],
    v: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// `[BLOCK][padded]`.
    k_rows: &'a mut [f32],
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, saved, grads, add, batch, kv_head, mut scratch } = self;
        let size = problem.size;
        if !add {
            clear(problem, &grads, batch, kv_head);
        }
        let tile = BLOCK * problem.padded_width();
        let mut keys = Keys {
            k: cut(&mut scratch, tile),
            v: cut(&mut scratch, tile),
            dk: cut(&mut scratch, tile),
            dv: cut(&mut scratch, tile),
            k_rows: cut(&mut scratch, tile),
            scores: cut(&mut scratch, BLOCK * BLOCK),
            dscores: cut(&mut scratch, BLOCK * BLOCK),
        };
        let columns = Columns::new();
        for group in 0..problem.n_blocks().div_ceil(problem.group_size()) {
            let blocks: Vec<QueryBlock> = problem.group(batch, kv_head, group).collect();
            let mut rest: &mut [f32] = &mut *scratch;
            let mut states: [Option<State<'_>>; 4] = [None, None, None, None];
            for (block, state) in blocks.iter().zip(&mut states) {
                *state = Some(load(s, problem, saved, block, &mut rest));
            }
            for key in key_blocks(&blocks) {
                let n = BLOCK.min(problem.n_keys - key);
                let token = batch * size.tk + key;
                load_keys(s, problem, (token, kv_head, n), &mut keys);
                for (block, state) in blocks.iter().zip(states.iter_mut().flatten()) {
                    if block.reaches(key) {
                        let spans = Spans::new(problem, block, key);
                        one_tile(s, size.width, &columns, &spans, state, &mut keys, &grads);
                    }
                }
                // The rows of K are no longer needed, so their tile is the buffer for the
                // gradients.
                for (grad, from) in [(grads[1], &*keys.dk), (grads[2], &*keys.dv)] {
                    let Some(grad) = grad else { continue };
                    pack::transpose_back(s, from, keys.k_rows);
                    for (r, row) in keys.k_rows.chunks_exact(tile / BLOCK).take(n).enumerate() {
                        // SAFETY: this head of this token belongs to this task.
                        let to = unsafe { grad.row(token + r, kv_head, size.width) };
                        pack::put_row(s, row, 1.0, to, true);
                    }
                }
            }
            let Some(dq) = grads[0] else { continue };
            for (block, state) in blocks.iter().zip(states.iter().flatten()) {
                let token = batch * size.tq + block.start;
                for (r, row) in state.dq.chunks_exact(tile / BLOCK).take(block.n).enumerate() {
                    // SAFETY: as above.
                    let to = unsafe { dq.row(token + r, block.head, size.width) };
                    pack::put_row(s, row, problem.scale, to, add);
                }
            }
        }
    }
}

/// Zeros the gradients of keys and values of one head, because tiles add to them.
pub(super) fn clear(
    problem: &Problem<'_>,
    grads: &[Option<HeadsMut>; 3],
    batch: usize,
    kv_head: usize,
) {
    for grad in grads[1..].iter().flatten() {
        for t in 0..problem.size.tk {
            let token = batch * problem.size.tk + t;
            // SAFETY: this head of this token belongs to this task.
            unsafe { grad.row(token, kv_head, problem.size.width) }.fill(0.0);
        }
    }
}

/// Packs a block of queries.
#[inline(always)]
fn load<'a, S: Simd>(
    s: S,
    problem: &Problem<'_>,
    saved: &Saved<'_>,
    block: &QueryBlock,
    scratch: &mut &'a mut [f32],
) -> State<'a> {
    let size = problem.size;
    let (width, tile) = (size.width, BLOCK * problem.padded_width());
    let state = State {
        q: cut(scratch, tile),
        dy: cut(scratch, tile),
        dq: cut(scratch, tile),
        lse: cut(scratch, BLOCK),
        delta: cut(scratch, BLOCK),
    };
    let token = block.batch * size.tq + block.start;
    let from = problem.q.from(token, block.head, width);
    let from = Rows::strided(from, problem.q.stride, block.n);
    pack::transposed(s, &from, width, problem.scale, state.q);
    let stride = size.n_heads * width;
    let dy = Heads { data: saved.dy, offset: 0, stride }.from(token, block.head, width);
    let out = Heads { data: saved.out, offset: 0, stride }.from(token, block.head, width);
    pack::transposed(s, &Rows::strided(dy, stride, block.n), width, 1.0, state.dy);
    state.dq.fill(0.0);
    let at = (block.batch * size.n_heads + block.head) * size.tq + block.start;
    state.lse[..block.n].copy_from_slice(&saved.lse[at..][..block.n]);
    for r in 0..block.n {
        state.delta[r] = dot(s, &dy[r * stride..][..width], &out[r * stride..][..width]);
    }
    state
}

/// Packs a block of `n` keys and values and clears their gradients.
#[inline(always)]
fn load_keys<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    (token, kv_head, n): (usize, usize, usize),
    keys: &mut Keys<'_>,
) {
    let width = problem.size.width;
    let from = Rows::strided(problem.k.from(token, kv_head, width), problem.k.stride, n);
    pack::transposed(s, &from, width, 1.0, keys.k);
    pack::rows(s, &from, width, keys.k_rows);
    let from = Rows::strided(problem.v.from(token, kv_head, width), problem.v.stride, n);
    pack::transposed(s, &from, width, 1.0, keys.v);
    keys.dk.fill(0.0);
    keys.dv.fill(0.0);
}

/// The five products of one tile.
#[inline(always)]
fn one_tile<S: Simd>(
    s: S,
    width: usize,
    columns: &Columns,
    spans: &Spans,
    state: &mut State<'_>,
    keys: &mut Keys<'_>,
    grads: &[Option<HeadsMut>; 3],
) {
    tile::scores(s, spans, width, state.q, keys.k, keys.scores);
    tile::scores(s, spans, width, state.dy, keys.v, keys.dscores);
    let rows = (&*state.lse, &*state.delta);
    score_gradients(s, columns, spans, rows, keys.scores, keys.dscores);
    if grads[2].is_some() {
        tile::gathered(s, spans, state.dy, keys.scores, keys.dv);
    }
    if grads[1].is_some() {
        tile::gathered(s, spans, state.q, keys.dscores, keys.dk);
    }
    if grads[0].is_some() {
        tile::weighted(s, spans, keys.dscores, keys.k_rows, state.dq);
    }
}

/// In place: scores become `P`, `dP` becomes `dS`; both 0 where nothing is seen.
#[inline(always)]
pub(super) fn score_gradients<S: Simd>(
    s: S,
    columns: &Columns,
    spans: &Spans,
    (lse, delta): (&[f32], &[f32]),
    scores: &mut [f32],
    dscores: &mut [f32],
) {
    assert!(scores.len() >= BLOCK * BLOCK && dscores.len() >= BLOCK * BLOCK);
    let zero = s.splat(0.0);
    for r in 0..BLOCK {
        let (lo, hi) = spans.rows[r];
        let (lse, delta) = (s.splat(lse[r]), s.splat(delta[r]));
        for j in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: j + lanes <= BLOCK.
            unsafe {
                let at = scores.as_mut_ptr().add(r * BLOCK + j);
                let at_d = dscores.as_mut_ptr().add(r * BLOCK + j);
                let (mut p, mut ds) = (zero, zero);
                if j < hi && lo < j + S::LANES {
                    p = exp(s, s.sub(s.load(at), lse));
                    ds = s.mul(p, s.sub(s.load(at_d), delta));
                    p = columns.select(s, j, (lo, hi), p, zero);
                    ds = columns.select(s, j, (lo, hi), ds, zero);
                }
                s.store(at, p);
                s.store(at_d, ds);
            }
        }
    }
}
