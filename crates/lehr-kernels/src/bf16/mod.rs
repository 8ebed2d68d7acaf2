//! Matrix products of bf16 numbers with sums in f32.
//!
//! Operands are rounded to bf16 and laid out in tiles once ([`Panels`]), then used by several
//! products: an input by forward and by the gradient of the weight, a weight by forward and by the
//! gradient of the input.
//!
//! ```text
//! for each task: ≤ 16 panels of A × ≤ 16 panels of B    (C in one task, so no thread waits)
//!   for k0 in K by KC = 512                one pass; its panels of A take ≤ 256 KiB
//!     for each panel of B: KC × 32         ≤ 32 KiB       stays in the nearest cache
//!       for each two panels of A: 32 × KC  ≤ 32 KiB       streams from the second level
//!         block of C: 32 × 32              tile registers, loaded and stored once per pass
//! ```
//!
//! The order of additions along K depends on nothing else, and sums go through memory in f32. So
//! the number of threads, the division into tasks and the other rows and columns do not change a
//! bit of C.

mod local;
mod pack;

pub use local::{LocalForms, local_words, pack_local, product_local};
pub use pack::{Forms, pack, pack_rows};

use std::time::Instant;

use crate::buffer::CpuBuffer;
use crate::gemm::{Matrix, gemm};
use crate::simd::tile16::{self, Block, SIDE, STEPS, TILE, TileIsa, WIDE, Worker};
use crate::threads::{self, SharedMut};
use crate::{DType, Error, Result};

/// Tiles along K of one pass.
const PASS: usize = 16;
/// Most panels of A of a task.
const A_GROUP: usize = 16;
/// Most panels of B of a task.
const B_GROUP: usize = 16;

/// Which operand of a product panels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A: panels of 16 rows.
    Left,
    /// B: panels of 32 columns.
    Right,
}

/// A matrix in bf16, laid out in tiles as the left or right operand of products.
#[derive(Debug)]
pub struct Panels {
    data: CpuBuffer,
    side: Side,
    /// Rows of a left operand, columns of a right one.
    width: usize,
    /// Length of the sums.
    steps: usize,
}

impl Panels {
    /// Panels of unspecified values, to be filled by [`pack`].
    ///
    /// # Errors
    /// If there is no memory.
    pub fn uninit(side: Side, width: usize, steps: usize) -> Result<Self> {
        let padded = width.next_multiple_of(panel_width(side));
        let len = padded.saturating_mul(steps.next_multiple_of(STEPS));
        Ok(Self { data: CpuBuffer::uninit(DType::BF16, len)?, side, width, steps })
    }

    /// Rows of a left operand, columns of a right one.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Length of the sums.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.data.bytes().len()
    }

    fn n_tiles(&self) -> usize {
        self.steps.div_ceil(STEPS)
    }

    fn n_panels(&self) -> usize {
        self.width.div_ceil(panel_width(self.side))
    }

    /// Numbers of a panel.
    fn panel_len(&self) -> usize {
        panel_width(self.side) * STEPS * self.n_tiles()
    }

    fn as_ptr(&self) -> *const u16 {
        self.data.bytes().as_ptr().cast()
    }
}

fn panel_width(side: Side) -> usize {
    match side {
        Side::Left => SIDE,
        Side::Right => WIDE,
    }
}

/// `C = A B (+ bias)` or, if `accumulate`, `C += A B`, for operands in bf16 and sums in f32.
///
/// A is `[m, k]`, B `[k, n]`, C `[m, n]` row-major with rows `c_stride` apart, bias `[n]`. Rows are
/// computed independently: the bits of a row of C depend on that row of A and on B only.
///
/// # Errors
/// If both accumulation and a bias are asked for.
///
/// # Panics
/// If the operands are on the wrong sides or extents differ: callers check shapes at the op's
/// boundary.
pub fn product(
    a: &Panels,
    b: &Panels,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
    bias: Option<&[f32]>,
) -> Result<()> {
    let (m, n) = (a.width, b.width);
    assert!(a.side == Side::Left && b.side == Side::Right, "bf16 product: sides of the operands");
    assert_eq!(a.steps, b.steps, "bf16 product: lengths of the sums");
    assert!(bias.is_none_or(|bias| bias.len() == n), "bf16 product: one bias per column");
    if accumulate && bias.is_some() {
        let (value, expected) = ("true with a bias".to_owned(), "one of both");
        return Err(Error::Argument { op: "bf16 product", name: "accumulate", value, expected });
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    assert!((m - 1) * c_stride + n <= c.len(), "bf16 product: C is shorter than {m} x {n}");
    if a.steps == 0 {
        for row in c.chunks_mut(c_stride).take(m).filter(|_| !accumulate) {
            match bias {
                Some(bias) => row[..n].copy_from_slice(bias),
                None => row[..n].fill(0.0),
            }
        }
        return Ok(());
    }
    let isa = tile16::chosen();
    let job = Job { isa, a, b, c: SharedMut::new(c), c_stride, accumulate, bias };
    let (n_a, n_b) = (a.n_panels(), b.n_panels());
    let (group_a, group_b) = task_size(n_a, n_b, a.n_tiles());
    let tasks_a = n_a.div_ceil(group_a);
    threads::run(tasks_a * n_b.div_ceil(group_b), |task| {
        let (ta, tb) = (task % tasks_a, task / tasks_a);
        let panels_a = ta * group_a..n_a.min((ta + 1) * group_a);
        let panels_b = tb * group_b..n_b.min((tb + 1) * group_b);
        job.run(panels_a, panels_b);
    });
    Ok(())
}

/// Measures how many times as long a product of 512 x 512 x 512 takes in bf16 as in f32 on this
/// machine: for a note, as it varies from call to call.
///
/// # Errors
/// If there is no memory.
pub fn time_against_f32() -> Result<f64> {
    const SIDE: usize = 512;
    let values = vec![1.0f32; SIDE * SIDE];
    let mut c = vec![0.0f32; SIDE * SIDE];
    let mut left = Panels::uninit(Side::Left, SIDE, SIDE)?;
    let mut right = Panels::uninit(Side::Right, SIDE, SIDE)?;
    let forms = Forms { left: Some(&mut left), right: Some(&mut right), ..Forms::default() };
    pack(&values, SIDE, (SIDE, SIDE), forms);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..3 {
        let start = Instant::now();
        product(&left, &right, &mut c, SIDE, false, None)?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let m = Matrix::rows(&values, SIDE);
        gemm((SIDE, SIDE, SIDE), m, m, &mut c, SIDE, false, None)?;
        best[1] = best[1].min(start.elapsed().as_secs_f64());
    }
    Ok(best[0] / best[1])
}

/// Measures the FLOP/s that the instructions of all threads reach on tiles in the nearest caches:
/// the ceiling of every product.
#[must_use]
pub fn instruction_rate() -> f64 {
    /// Tiles along the sum: 4 KiB per step of them stay in a first-level cache.
    const TILES: usize = 8;
    const N_BLOCKS: usize = 2;
    /// A cache line.
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Line(#[expect(dead_code, reason = "read by instructions")] [u16; 32]);
    const REPEATS: usize = 10_000;
    let n_threads = threads::n_threads();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        threads::run(n_threads, |_| {
            let worker = Worker::new(tile16::chosen());
            // Aligned to cache lines, as panels are.
            let operands = vec![[[0u16; 32]; 16].map(Line); 4 * TILES];
            // Blocks of C in turn: none is read right after it was written.
            let mut c = vec![[Line([0u16; 32]); 2 * WIDE]; N_BLOCKS];
            let zeros = [0.0f32; WIDE];
            let at = |tile: usize| operands[tile].as_ptr().cast();
            let (a0, a1, b, n) = (at(0), Some(at(TILES)), at(2 * TILES), TILES);
            for i in 0..REPEATS {
                let to = c[i % N_BLOCKS].as_mut_ptr().cast();
                let (from, from_stride, to_stride) = (zeros.as_ptr(), 0, WIDE);
                let block = Block { a0, a1, b, n, from, from_stride, to, to_stride };
                // SAFETY: the operands hold four times TILES tiles, C 32 rows of 32 numbers.
                unsafe { worker.multiply(&block) };
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (n_threads * REPEATS * TILES * STEPS * WIDE * WIDE) as f64 / best
}

/// Number of panels of A (even) and of B per task: enough work to be worth waking a thread for, and
/// several tasks per thread if the product is large.
fn task_size(n_a: usize, n_b: usize, n_tiles: usize) -> (usize, usize) {
    /// Products of two tiles of a task: about 10 microseconds of one core.
    const TILES_MIN: usize = 1 << 10;
    let group_a = n_a.next_multiple_of(2).min(A_GROUP);
    let tasks_a = n_a.div_ceil(group_a);
    let wanted = threads::n_threads() * 4;
    let group_b = n_b.div_ceil(wanted.div_ceil(tasks_a));
    let least = TILES_MIN.div_ceil(2 * group_a * n_tiles);
    (group_a, group_b.max(least).clamp(1, B_GROUP).min(n_b))
}

struct Job<'a> {
    isa: TileIsa,
    a: &'a Panels,
    b: &'a Panels,
    c: SharedMut<f32>,
    c_stride: usize,
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

impl Job<'_> {
    fn run(&self, panels_a: std::ops::Range<usize>, panels_b: std::ops::Range<usize>) {
        let worker = Worker::new(self.isa);
        let n_tiles = self.a.n_tiles();
        for first in (0..n_tiles).step_by(PASS) {
            let tiles = first..n_tiles.min(first + PASS);
            for jb in panels_b.clone() {
                for ia in panels_a.clone().step_by(2) {
                    let two = ia + 1 < panels_a.end;
                    self.block(&worker, (ia, two), jb, &tiles);
                }
            }
        }
    }

    /// One block of C, over some of the tiles along K.
    fn block(
        &self,
        worker: &Worker,
        (ia, two): (usize, bool),
        jb: usize,
        tiles: &std::ops::Range<usize>,
    ) {
        /// Where a block goes that sticks out of C.
        #[repr(align(64))]
        struct Edge([f32; WIDE * WIDE]);

        let (a, b, c_stride) = (self.a, self.b, self.c_stride);
        let (i, j) = (ia * SIDE, jb * WIDE);
        let height = if two { 2 * SIDE } else { SIDE };
        let (rows, columns) = (height.min(a.width - i), WIDE.min(b.width - j));
        let a0 = a.as_ptr().wrapping_add(ia * a.panel_len() + tiles.start * TILE);
        let a1 = two.then(|| a0.wrapping_add(a.panel_len()));
        let b = b.as_ptr().wrapping_add(jb * b.panel_len() + 2 * tiles.start * TILE);
        let n = tiles.len();
        // SAFETY: (i, j) lies within C.
        let c = unsafe { self.c.ptr().add(i * c_stride + j) };
        let mut start = [0.0f32; WIDE];
        if let Some(bias) = self.bias {
            start[..columns].copy_from_slice(&bias[j..j + columns]);
        }
        let is_first = tiles.start == 0 && !self.accumulate;
        let start: (*const f32, usize) =
            if is_first { (start.as_ptr(), 0) } else { (c.cast_const(), c_stride) };
        if rows == height && columns == WIDE {
            let (from, from_stride) = start;
            let block = Block { a0, a1, b, n, from, from_stride, to: c, to_stride: c_stride };
            // SAFETY: the block lies within C and belongs to this task; panels hold whole tiles.
            return unsafe { worker.multiply(&block) };
        }
        let mut edge = Edge([0.0; WIDE * WIDE]);
        for (r, row) in edge.0.chunks_exact_mut(WIDE).take(rows).enumerate() {
            // SAFETY: `columns` numbers of row r of C, or of the bias.
            let from = unsafe { std::slice::from_raw_parts(start.0.add(r * start.1), columns) };
            row[..columns].copy_from_slice(from);
        }
        let to = edge.0.as_mut_ptr();
        let block = Block { a0, a1, b, n, from: to, from_stride: WIDE, to, to_stride: WIDE };
        // SAFETY: the block is a local array; panels hold whole tiles, padded with 0.
        unsafe { worker.multiply(&block) };
        for (r, row) in edge.0.chunks_exact(WIDE).take(rows).enumerate() {
            // SAFETY: `columns` numbers of row r of C, which belongs to this task.
            let to = unsafe { std::slice::from_raw_parts_mut(c.add(r * c_stride), columns) };
            to.copy_from_slice(&row[..columns]);
        }
    }
}

#[cfg(test)]
mod tests;
