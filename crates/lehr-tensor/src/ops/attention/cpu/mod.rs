//! Attention by tiles of [`BLOCK`] queries and [`BLOCK`] keys.
//!
//! A *block* is [`BLOCK`] queries of one head. A *group* is a few blocks of heads that share keys
//! and values, which are packed once for all of them:
//!
//! ```text
//! for each group of ≤ 4 blocks              one task
//!   for each block of 64 keys it sees
//!     pack k [E, 64] and v [64, E]          2 · 64 E floats
//!     for each block of queries             q, output: 2 · 64 E floats each
//!       scores [64, 64], softmax, values    16 KiB of scores
//! ```
//!
//! With E = 64 a task works on about 190 KiB, so it stays in the second-level cache. Tiles that no
//! query sees are skipped. Tiles at an edge of the mask are masked, and their products leave out
//! rows and columns that nobody sees ([`tile::Spans`]).

mod backward;
mod decode;
mod forward;
mod pack;
mod rounded;
mod tile;

use std::sync::{Mutex, PoisonError};

use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::threads::{self, SharedMut};

use pack::Rows;

use super::AttentionSize;
use crate::{DType, Result};

pub(super) use backward::{Saved, backward};

/// Queries, and keys, per tile.
const BLOCK: usize = 64;
/// Largest number of queries per head for which keys are read without packing, by [`decode`]. Both
/// ways give the same bits.
const DECODE_MAX: usize = 4;
/// Running maximum of a row before its first key: low but finite, because `−∞ − (−∞)` is NaN.
const LOWEST: f32 = -1e30;
/// Room for the sums of one row, one per lane.
const SUMS: usize = 16;

/// Queries, keys or values within a buffer: heads lie side by side in the rows of tokens.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) data: &'a [f32],
    /// Where the first head of the first token starts.
    pub(super) offset: usize,
    /// From one token to the next.
    pub(super) stride: usize,
}

impl<'a> Heads<'a> {
    /// The buffer from the given token (counted through the batch) and head on.
    fn from(&self, token: usize, head: usize, width: usize) -> &'a [f32] {
        &self.data[self.offset + token * self.stride + head * width..]
    }
}

/// [`Heads`] that tasks write, each to its own rows.
#[derive(Clone, Copy)]
pub(super) struct HeadsMut {
    pub(super) data: SharedMut<f32>,
    pub(super) offset: usize,
    pub(super) stride: usize,
}

impl HeadsMut {
    /// One head of one token.
    ///
    /// # Safety
    /// No other task uses this head of this token, and the original borrow is alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn row(&self, token: usize, head: usize, width: usize) -> &mut [f32] {
        let start = self.offset + token * self.stride + head * width;
        // SAFETY: promised by the caller.
        unsafe { self.data.slice(start, width) }
    }
}

/// The pages of all texts: `max` numbers for each, of pages of `1 << shift` tokens.
#[derive(Clone, Copy)]
pub(super) struct Paged<'a> {
    pub(super) table: &'a [i32],
    pub(super) max: usize,
    pub(super) shift: u32,
}

/// The inputs of one call, shared by all tasks.
pub(super) struct Problem<'a> {
    pub(super) size: AttentionSize,
    pub(super) n_keys: usize,
    pub(super) scale: f32,
    /// `[B, Tq, 2]`: first key seen and one past the last.
    pub(super) intervals: &'a [i32],
    /// The pages of keys and values, if they are paged. Only the forward pass reads them.
    pub(super) pages: Option<Paged<'a>>,
    /// Whether products are in bf16. Only training has that.
    pub(super) in_bf16: bool,
    pub(super) q: Heads<'a>,
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
}

impl<'a> Problem<'a> {
    /// Keys or values `key..key + n` of a text.
    #[inline(always)]
    fn rows(&self, of: &Heads<'a>, batch: usize, key: usize, n: usize, head: usize) -> Rows<'a> {
        let first = of.offset + head * self.size.width;
        match self.pages {
            None => {
                let token = batch * self.size.tk + key;
                Rows::new(of.data, n, |i| first + (token + i) * of.stride)
            }
            Some(Paged { table, max, shift }) => {
                let table = &table[batch * max..][..max];
                let within = (1 << shift) - 1;
                Rows::new(of.data, n, |i| {
                    let page = table[(key + i) >> shift] as usize;
                    first + ((page << shift) + ((key + i) & within)) * of.stride
                })
            }
        }
    }

    /// E rounded up to whole vectors of every instruction set.
    fn padded_width(&self) -> usize {
        self.size.width.next_multiple_of(16)
    }

    /// Query heads per key-value head.
    fn heads_per_kv(&self) -> usize {
        self.size.n_heads / self.size.n_kv_heads
    }

    /// Number of blocks of queries that share a key-value head.
    fn n_blocks(&self) -> usize {
        self.size.tq.div_ceil(BLOCK) * self.heads_per_kv()
    }

    /// Blocks per group: four, or fewer if heads are so wide that four would not fit into the
    /// cache.
    fn group_size(&self) -> usize {
        (4 * BLOCK / self.padded_width().max(1)).clamp(1, 4)
    }

    /// The blocks of group number `index`. Heads that share keys are neighbours.
    fn group(
        &self,
        batch: usize,
        kv_head: usize,
        index: usize,
    ) -> impl Iterator<Item = QueryBlock> + use<'_, 'a> {
        let (size, per_kv) = (self.group_size(), self.heads_per_kv());
        (index * size..self.n_blocks().min((index + 1) * size)).map(move |i| {
            let start = i / per_kv * BLOCK;
            QueryBlock::new(self, batch, kv_head * per_kv + i % per_kv, start)
        })
    }
}

/// Up to [`BLOCK`] consecutive queries of one head.
struct QueryBlock {
    batch: usize,
    head: usize,
    /// The first query.
    start: usize,
    n: usize,
    /// Smallest and largest start of the intervals, then of their ends. Empty ones count only in
    /// `full_*`.
    reach: (usize, usize),
    full: (usize, usize),
}

impl QueryBlock {
    fn new(problem: &Problem<'_>, batch: usize, head: usize, start: usize) -> Self {
        let n = BLOCK.min(problem.size.tq - start);
        let mut block =
            Self { batch, head, start, n, reach: (usize::MAX, 0), full: (0, usize::MAX) };
        for bounds in block.intervals(problem).chunks_exact(2) {
            let (lo, hi) = (bounds[0] as usize, bounds[1] as usize);
            if lo < hi {
                block.reach = (block.reach.0.min(lo), block.reach.1.max(hi));
            }
            block.full = (block.full.0.max(lo), block.full.1.min(hi));
        }
        if n < BLOCK {
            block.full = (0, 0);
        }
        block
    }

    /// The first query, counted through the batch.
    fn token(&self, problem: &Problem<'_>) -> usize {
        self.batch * problem.size.tq + self.start
    }

    fn intervals<'a>(&self, problem: &Problem<'a>) -> &'a [i32] {
        &problem.intervals[2 * (self.batch * problem.size.tq + self.start)..][..2 * self.n]
    }

    /// Whether some query sees some of the keys from `key` to `key + BLOCK`.
    fn reaches(&self, key: usize) -> bool {
        self.reach.0 < key + BLOCK && key < self.reach.1
    }
}

/// The blocks of keys that a group sees, as a range of multiples of [`BLOCK`].
fn key_blocks(blocks: &[QueryBlock]) -> impl Iterator<Item = usize> + use<> {
    let lo = blocks.iter().map(|b| b.reach.0).min().unwrap_or(0);
    let hi = blocks.iter().map(|b| b.reach.1).max().unwrap_or(0);
    (lo / BLOCK * BLOCK..hi).step_by(BLOCK)
}

/// The result into `out` `[B, Tq, H, E]`, and log-sum-exps into `lse` `[B, H, Tq]` if wanted.
pub(super) fn forward(
    problem: &Problem<'_>,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    if lse.is_none() && problem.size.tq <= DECODE_MAX {
        return decode::decode(problem, out);
    }
    if problem.in_bf16 && lse.is_some() && problem.size.width > 0 {
        return rounded::forward(problem, out, lse);
    }
    forward::forward(problem, out, lse)
}

/// Runs the tasks with `scratch` floats each. Returns an error if one of them got no memory.
fn run_tasks(
    n_tasks: usize,
    scratch: usize,
    task: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    let failure = Mutex::new(None);
    threads::run(n_tasks, |index| match CpuBuffer::uninit(DType::F32, scratch) {
        Ok(mut buffer) => task(index, buffer.as_mut_slice()),
        Err(error) => *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Cuts `len` floats off the front of `scratch`.
fn cut<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    front
}
