//! Training with products in bf16: the tiles of [`forward`](super::forward) and
//! [`backward`](super::backward), whose operands are rounded and laid out for
//! [`product_local`]. Softmax, sums and gradients are in f32.
//!
//! | operand | form | used for |
//! |---|---|---|
//! | q, dO | left | S, dP |
//! | k, v | transposed, right | S, dP |
//! | P, dS | left | O, dQ |
//! | v, k | right | O, dQ |
//! | P, dS | transposed, left | dV, dK |
//! | dO, q | right | dV, dK |

use lehr_kernels::bf16::{LocalForms, local_words, pack_local, product_local};
use lehr_kernels::gemm::vector::dot;
use lehr_kernels::simd::tile16::{self, WIDE, Worker};
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::SharedMut;

use super::backward::{Saved, clear, score_gradients};
use super::forward::{State, finish, softmax};
use super::tile::{Columns, Spans};
use super::{
    BLOCK, Heads, HeadsMut, LOWEST, Problem, QueryBlock, SUMS, cut, key_blocks, pack, run_tasks,
};
use crate::Result;

/// Words of the forms of P and dS.
const SQUARE: usize = local_words(BLOCK, BLOCK);

/// Cuts `len` words off the front of `scratch`.
fn cut_words<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [u32] {
    let floats = cut(scratch, len);
    // SAFETY: both types have the same size and alignment, and any bits are valid.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), len) }
}

/// E rounded up to whole tiles.
fn padded_width(problem: &Problem<'_>) -> usize {
    problem.size.width.next_multiple_of(WIDE)
}

/// `out = softmax(scale q kᵀ + mask) v`, and the log-sum-exps.
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
    let padded = padded_width(problem);
    let form = local_words(BLOCK, padded);
    let per_block = form + BLOCK * padded + BLOCK * (SUMS + 1);
    let scratch = problem.group_size() * per_block + 2 * form + BLOCK * BLOCK + SQUARE;
    run_tasks(n_groups * n_heads, scratch, |index, scratch| {
        // The longest tasks first, as in f32.
        let group = n_groups - 1 - index / n_heads;
        let (batch, kv_head) = (index % n_heads / size.n_kv_heads, index % size.n_kv_heads);
        let blocks: Vec<QueryBlock> = problem.group(batch, kv_head, group).collect();
        dispatch(Forward { problem, blocks: &blocks, kv_head, out, lse, scratch });
    })
}

struct Forward<'a> {
    problem: &'a Problem<'a>,
    blocks: &'a [QueryBlock],
    kv_head: usize,
    out: HeadsMut,
    lse: Option<SharedMut<f32>>,
    scratch: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, blocks, kv_head, out, lse, mut scratch } = self;
        let (size, padded) = (problem.size, padded_width(problem));
        let (form, room) = (local_words(BLOCK, padded), (BLOCK, padded));
        let worker = Worker::new(tile16::chosen());
        let k = cut_words(&mut scratch, form);
        let v = cut_words(&mut scratch, form);
        let scores = cut(&mut scratch, BLOCK * BLOCK);
        let weights = cut_words(&mut scratch, SQUARE);
        let mut states: [Option<(&[u32], State<'_>)>; 4] = [const { None }; 4];
        for (block, state) in blocks.iter().zip(&mut states) {
            let q = cut_words(&mut scratch, form);
            let from = problem.q.from(block.token(problem), block.head, size.width);
            let left = LocalForms { left: Some(&mut *q), ..LocalForms::default() };
            let extents = (block.n, size.width);
            pack_local(s, from, problem.q.stride, extents, room, problem.scale, left);
            let out = cut(&mut scratch, BLOCK * padded);
            let max = cut(&mut scratch, BLOCK);
            let sums = cut(&mut scratch, BLOCK * SUMS);
            out.fill(0.0);
            max.fill(LOWEST);
            sums.fill(0.0);
            *state = Some((q, State { q: &mut [], out, max, sums }));
        }
        let columns = Columns::new();
        for key in key_blocks(blocks) {
            let token = blocks[0].batch * size.tk + key;
            let extents = (BLOCK.min(problem.n_keys - key), size.width);
            let rows = problem.k.from(token, kv_head, size.width);
            let form = LocalForms { right_transposed: Some(&mut *k), ..LocalForms::default() };
            pack_local(s, rows, problem.k.stride, extents, room, 1.0, form);
            let rows = problem.v.from(token, kv_head, size.width);
            let form = LocalForms { right: Some(&mut *v), ..LocalForms::default() };
            pack_local(s, rows, problem.v.stride, extents, room, 1.0, form);
            for (block, (q, state)) in blocks.iter().zip(states.iter_mut().flatten()) {
                if !block.reaches(key) {
                    continue;
                }
                let spans = Spans::new(problem, block, key);
                product_local(&worker, (BLOCK, BLOCK, padded), q, k, scores, BLOCK, false);
                softmax(s, &columns, &spans, scores, state);
                let form = LocalForms { left: Some(&mut *weights), ..LocalForms::default() };
                pack_local(s, scores, BLOCK, (BLOCK, BLOCK), (BLOCK, BLOCK), 1.0, form);
                let extents = (BLOCK, padded, BLOCK);
                product_local(&worker, extents, weights, v, state.out, padded, true);
            }
        }
        for (block, (_, state)) in blocks.iter().zip(states.iter().flatten()) {
            finish(s, problem, block, state, out, lse);
        }
    }
}

/// Writes the wanted gradients of q, k and v, or adds them if `add`.
pub(super) fn backward(
    problem: &Problem<'_>,
    saved: &Saved<'_>,
    grads: [Option<HeadsMut>; 3],
    add: bool,
) -> Result<()> {
    let (size, padded) = (problem.size, padded_width(problem));
    let form = local_words(BLOCK, padded);
    let per_block = 4 * form + BLOCK * padded + 2 * BLOCK;
    let of_keys = 3 * form + 2 * BLOCK * padded + 2 * BLOCK * BLOCK + 3 * SQUARE;
    let scratch = problem.group_size() * per_block + of_keys;
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

/// One block of queries.
struct Queries<'a> {
    /// Scaled.
    q: &'a mut [u32],
    q_right: &'a mut [u32],
    dy: &'a mut [u32],
    dy_right: &'a mut [u32],
    /// `[BLOCK][padded]`.
    dq: &'a mut [f32],
    lse: &'a mut [f32],
    /// `Σ dO O` per row.
    delta: &'a mut [f32],
}

/// One block of keys.
struct Keys<'a> {
    k: &'a mut [u32],
    k_right: &'a mut [u32],
    v: &'a mut [u32],
    /// `[BLOCK][padded]`, like `dv`.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    /// Pᵀ.
    weights: &'a mut [u32],
    ds: &'a mut [u32],
    ds_transposed: &'a mut [u32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, saved, grads, add, batch, kv_head, mut scratch } = self;
        let (size, padded) = (problem.size, padded_width(problem));
        if !add {
            clear(problem, &grads, batch, kv_head);
        }
        let worker = Worker::new(tile16::chosen());
        let mut keys = Keys::cut(&mut scratch, padded);
        let columns = Columns::new();
        for group in 0..problem.n_blocks().div_ceil(problem.group_size()) {
            let blocks: Vec<QueryBlock> = problem.group(batch, kv_head, group).collect();
            let mut rest: &mut [f32] = &mut *scratch;
            let mut states: [Option<Queries<'_>>; 4] = [const { None }; 4];
            for (block, state) in blocks.iter().zip(&mut states) {
                *state = Some(Queries::load(s, problem, saved, block, &mut rest));
            }
            for key in key_blocks(&blocks) {
                let token = batch * size.tk + key;
                let n = BLOCK.min(problem.n_keys - key);
                keys.load(s, problem, (token, kv_head, n));
                for (block, state) in blocks.iter().zip(states.iter_mut().flatten()) {
                    if block.reaches(key) {
                        let spans = Spans::new(problem, block, key);
                        one_tile(s, &worker, (&columns, &spans), state, &mut keys, &grads);
                    }
                }
                for (grad, from) in [(grads[1], &*keys.dk), (grads[2], &*keys.dv)] {
                    let Some(grad) = grad else { continue };
                    for (r, row) in from.chunks_exact(padded).take(n).enumerate() {
                        // SAFETY: this head of this token belongs to this task.
                        let to = unsafe { grad.row(token + r, kv_head, size.width) };
                        pack::put_row(s, row, 1.0, to, true);
                    }
                }
            }
            let Some(dq) = grads[0] else { continue };
            for (block, state) in blocks.iter().zip(states.iter().flatten()) {
                let token = block.token(problem);
                for (r, row) in state.dq.chunks_exact(padded).take(block.n).enumerate() {
                    // SAFETY: as above.
                    let to = unsafe { dq.row(token + r, block.head, size.width) };
                    pack::put_row(s, row, problem.scale, to, add);
                }
            }
        }
    }
}

impl<'a> Keys<'a> {
    fn cut(scratch: &mut &'a mut [f32], padded: usize) -> Self {
        let form = local_words(BLOCK, padded);
        Self {
            k: cut_words(scratch, form),
            k_right: cut_words(scratch, form),
            v: cut_words(scratch, form),
            dk: cut(scratch, BLOCK * padded),
            dv: cut(scratch, BLOCK * padded),
            scores: cut(scratch, BLOCK * BLOCK),
            dscores: cut(scratch, BLOCK * BLOCK),
            weights: cut_words(scratch, SQUARE),
            ds: cut_words(scratch, SQUARE),
            ds_transposed: cut_words(scratch, SQUARE),
        }
    }

    /// Rounds a block of `n` keys and values and clears their gradients.
    #[inline(always)]
    fn load<S: Simd>(
        &mut self,
        s: S,
        problem: &Problem<'_>,
        (token, kv_head, n): (usize, usize, usize),
    ) {
        let (extents, room) = ((n, problem.size.width), (BLOCK, padded_width(problem)));
        let rows = problem.k.from(token, kv_head, problem.size.width);
        let forms = LocalForms {
            right_transposed: Some(&mut *self.k),
            right: Some(&mut *self.k_right),
            ..LocalForms::default()
        };
        pack_local(s, rows, problem.k.stride, extents, room, 1.0, forms);
        let rows = problem.v.from(token, kv_head, problem.size.width);
        let forms = LocalForms { right_transposed: Some(&mut *self.v), ..LocalForms::default() };
        pack_local(s, rows, problem.v.stride, extents, room, 1.0, forms);
        self.dk.fill(0.0);
        self.dv.fill(0.0);
    }
}

impl<'a> Queries<'a> {
    /// Rounds a block of queries and the gradients of their results.
    #[inline(always)]
    fn load<S: Simd>(
        s: S,
        problem: &Problem<'_>,
        saved: &Saved<'_>,
        block: &QueryBlock,
        scratch: &mut &'a mut [f32],
    ) -> Self {
        let (size, padded) = (problem.size, padded_width(problem));
        let (form, room) = (local_words(BLOCK, padded), (BLOCK, padded));
        let (token, width) = (block.token(problem), size.width);
        let state = Self {
            q: cut_words(scratch, form),
            q_right: cut_words(scratch, form),
            dy: cut_words(scratch, form),
            dy_right: cut_words(scratch, form),
            dq: cut(scratch, BLOCK * padded),
            lse: cut(scratch, BLOCK),
            delta: cut(scratch, BLOCK),
        };
        let forms = LocalForms {
            left: Some(&mut *state.q),
            right: Some(&mut *state.q_right),
            ..LocalForms::default()
        };
        let from = problem.q.from(token, block.head, width);
        pack_local(s, from, problem.q.stride, (block.n, width), room, problem.scale, forms);
        let stride = size.n_heads * width;
        let dy = Heads { data: saved.dy, offset: 0, stride }.from(token, block.head, width);
        let out = Heads { data: saved.out, offset: 0, stride }.from(token, block.head, width);
        let forms = LocalForms {
            left: Some(&mut *state.dy),
            right: Some(&mut *state.dy_right),
            ..LocalForms::default()
        };
        pack_local(s, dy, stride, (block.n, width), room, 1.0, forms);
        state.dq.fill(0.0);
        let at = (block.batch * size.n_heads + block.head) * size.tq + block.start;
        state.lse[..block.n].copy_from_slice(&saved.lse[at..][..block.n]);
        for r in 0..block.n {
            state.delta[r] = dot(s, &dy[r * stride..][..width], &out[r * stride..][..width]);
        }
        state
    }
}

/// The five products of one tile.
#[inline(always)]
fn one_tile<S: Simd>(
    s: S,
    worker: &Worker,
    (columns, spans): (&Columns, &Spans),
    state: &mut Queries<'_>,
    keys: &mut Keys<'_>,
    grads: &[Option<HeadsMut>; 3],
) {
    let padded = state.dq.len() / BLOCK;
    let (inner, outer, square) = ((BLOCK, BLOCK, padded), (BLOCK, padded, BLOCK), (BLOCK, BLOCK));
    product_local(worker, inner, state.q, keys.k, keys.scores, BLOCK, false);
    product_local(worker, inner, state.dy, keys.v, keys.dscores, BLOCK, false);
    let rows = (&*state.lse, &*state.delta);
    score_gradients(s, columns, spans, rows, keys.scores, keys.dscores);
    if grads[2].is_some() {
        let forms =
            LocalForms { left_transposed: Some(&mut *keys.weights), ..LocalForms::default() };
        pack_local(s, keys.scores, BLOCK, square, square, 1.0, forms);
        product_local(worker, outer, keys.weights, state.dy_right, keys.dv, padded, true);
    }
    let forms = LocalForms {
        left: Some(&mut *keys.ds),
        left_transposed: Some(&mut *keys.ds_transposed),
        ..LocalForms::default()
    };
    pack_local(s, keys.dscores, BLOCK, square, square, 1.0, forms);
    if grads[1].is_some() {
        product_local(worker, outer, keys.ds_transposed, state.q_right, keys.dk, padded, true);
    }
    if grads[0].is_some() {
        product_local(worker, outer, keys.ds, keys.k_right, state.dq, padded, true);
    }
}
