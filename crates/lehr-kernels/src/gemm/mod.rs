//! Matrix products: packed panels, one register tile per instruction set, fused bias.
//!
//! The scheme is that of Goto and van de Geijn 2008 ("Anatomy of high-performance matrix
//! multiplication"): a block of B stays in the outer caches, a panel of it in the first level,
//! and a tile of C in registers while A streams by. A and B may be transposed; packing hides it.
//!
//! The order of additions along K depends on K alone: one chain of multiply-adds for each pass, and
//! the passes one after the other. Neither the number of threads, nor the cut into tasks, nor the
//! other rows of A and columns of B change a bit of a number of C. Products of few rows, which take
//! another way ([`vector`]), keep to the same order.

mod pack;
mod tile;
pub mod vector;

use crate::buffer::CpuBuffer;
use crate::simd::{self, Isa, Scalar, Simd};
use crate::threads::{self, SharedMut};
use crate::{DType, Result};

/// Longest part of K handled by one pass of the register tile. A pass reads and writes all of C,
/// which costs more than that panels of A and B (at most 60 and 64 KiB) come from the second-level
/// cache: docs/experiments.md has the measurement.
const KC: usize = 512;
/// Distance of the rows of a packed panel of A. The odd number of cache lines keeps the rows from
/// falling on one cache set.
const A_PITCH: usize = KC + 16;
/// Columns of C handled by one packing of B.
const NC: usize = 2048;
/// Rows of C handled by one packing of A.
const MC: usize = 2016;

/// A matrix in memory: element (i, j) stands at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix with rows `stride` apart.
    #[must_use]
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    #[must_use]
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: 1, col_stride: stride }
    }

    fn check(&self, name: &str, rows: usize, cols: usize) {
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        assert!(last < self.data.len(), "gemm: {name} is shorter than {rows} x {cols}");
    }
}

/// `C = A B (+ bias)` or, if `accumulate`, `C += A B`.
///
/// A is `[m, k]`, B `[k, n]`, C `[m, n]` row-major with rows `c_stride` apart, bias `[n]`.
/// Sums are kept in f32, in passes of at most 512 along K. Rows are computed independently: the
/// bits of a row of C depend on that row of A and on B, not on the other rows.
///
/// # Errors
/// If there is no memory for the packed panels.
///
/// # Panics
/// If a slice is shorter than its shape says: callers check shapes at the op's boundary.
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
    bias: Option<&[f32]>,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    assert!((m - 1) * c_stride + n <= c.len(), "gemm: C is shorter than {m} x {n}");
    assert!(bias.is_none_or(|b| b.len() == n), "gemm: one bias per column");
    if k == 0 {
        for row in c.chunks_mut(c_stride).take(m).filter(|_| !accumulate) {
            match bias {
                Some(bias) => row[..n].copy_from_slice(bias),
                None => row[..n].fill(0.0),
            }
        }
        return Ok(());
    }
    a.check("A", m, k);
    b.check("B", k, n);
    // Read once: packing and tiles must agree on the width of a vector.
    let isa = simd::isa();
    let job = Job { isa, m, n, k, a, b, c_stride, accumulate, bias };
    if m <= vector::ROWS_MAX && a.col_stride == 1 {
        vector::multiply(&job, c);
        return Ok(());
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => job.run::<simd::Avx512, 14, 2>(c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => job.run::<simd::Avx2, 6, 2>(c),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => job.run::<simd::Neon, 8, 3>(c),
        _ => job.run::<Scalar, 4, 2>(c),
    }
}

/// Length of a pass along `k` steps, a multiple of 16. It depends on `k` alone, because the cut
/// decides the order of additions. Passes are of about equal length: a short last one would update
/// C for little work.
#[must_use]
pub fn pass(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC)).next_multiple_of(16).min(KC)
}

/// One product, as its parts see it.
struct Job<'a> {
    isa: Isa,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'a>,
    b: Matrix<'a>,
    c_stride: usize,
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

impl Job<'_> {
    fn pass(&self) -> usize {
        pass(self.k)
    }

    /// The loops around the register tile of `MR` rows and `NV` vectors.
    fn run<S: Simd, const MR: usize, const NV: usize>(&self, c: &mut [f32]) -> Result<()> {
        let nr = NV * S::LANES;
        let a_rows = self.m.min(MC).next_multiple_of(MR);
        let b_cols = self.n.min(NC).next_multiple_of(nr);
        let kc_max = self.pass();
        let mut a_pack = CpuBuffer::uninit(DType::F32, a_rows * A_PITCH)?;
        let mut b_pack = CpuBuffer::uninit(DType::F32, b_cols * kc_max.min(self.k))?;
        let c = SharedMut::new(c);
        for j0 in (0..self.n).step_by(NC) {
            let nc = NC.min(self.n - j0);
            for k0 in (0..self.k).step_by(kc_max) {
                let kc = kc_max.min(self.k - k0);
                for i0 in (0..self.m).step_by(MC) {
                    let mc = MC.min(self.m - i0);
                    let block = Block { i0, j0, k0, mc, nc, kc };
                    let b_dst = (i0 == 0).then(|| b_pack.as_mut_slice());
                    self.pack::<MR>(&block, nr, a_pack.as_mut_slice(), b_dst);
                    let (a, b) = (a_pack.as_slice(), b_pack.as_slice());
                    self.multiply::<S, MR, NV>(&block, a, b, c);
                }
            }
        }
        Ok(())
    }

    /// Packs the panels of A, and of B if it is their turn, in parallel.
    fn pack<const MR: usize>(
        &self,
        block: &Block,
        nr: usize,
        a_dst: &mut [f32],
        b_dst: Option<&mut [f32]>,
    ) {
        /// Panels per task: enough work to be worth a task.
        const GROUP: usize = 4;
        let (n_a, n_b) = (block.mc.div_ceil(MR), block.nc.div_ceil(nr));
        let a_tasks = n_a.div_ceil(GROUP);
        let b_tasks = if b_dst.is_some() { n_b.div_ceil(GROUP) } else { 0 };
        let a_dst = SharedMut::new(a_dst);
        let b_dst = b_dst.map(SharedMut::new);
        threads::run(a_tasks + b_tasks, |task| {
            if let Some(task) = task.checked_sub(b_tasks) {
                for panel in task * GROUP..n_a.min((task + 1) * GROUP) {
                    // SAFETY: panels do not overlap.
                    let dst = unsafe { a_dst.slice(panel * MR * A_PITCH, MR * A_PITCH) };
                    simd::dispatch_on(
                        self.isa,
                        pack::PackA { job: self, block, first: panel * MR, mr: MR, dst },
                    );
                }
            } else if let Some(b_dst) = b_dst {
                for panel in task * GROUP..n_b.min((task + 1) * GROUP) {
                    // SAFETY: panels do not overlap.
                    let dst = unsafe { b_dst.slice(panel * nr * block.kc, nr * block.kc) };
                    simd::dispatch_on(
                        self.isa,
                        pack::PackB { job: self, block, first: panel * nr, nr, dst },
                    );
                }
            }
        });
    }

    /// Runs the register tiles of one block, cut into tasks of whole panels.
    fn multiply<S: Simd, const MR: usize, const NV: usize>(
        &self,
        block: &Block,
        a: &[f32],
        b: &[f32],
        c: SharedMut<f32>,
    ) {
        let nr = NV * S::LANES;
        let (n_a, n_b) = (block.mc.div_ceil(MR), block.nc.div_ceil(nr));
        let (group_a, group_b) = task_size(n_a, n_b, block.kc * MR * nr);
        let tasks_a = n_a.div_ceil(group_a);
        threads::run(tasks_a * n_b.div_ceil(group_b), |task| {
            let (ta, tb) = (task % tasks_a, task / tasks_a);
            simd::dispatch_on(
                self.isa,
                tile::Tiles::<MR, NV> {
                    job: self,
                    block,
                    a,
                    b,
                    c,
                    a_panels: ta * group_a..n_a.min((ta + 1) * group_a),
                    b_panels: tb * group_b..n_b.min((tb + 1) * group_b),
                },
            );
        });
    }
}

/// How many panels of A and of B one task takes: about a megaflop at least, a panel group of A
/// that stays in the second-level cache, and several tasks for each thread if there is room.
fn task_size(n_a: usize, n_b: usize, flops_per_tile: usize) -> (usize, usize) {
    let group_a = n_a.min(12);
    let tasks_a = n_a.div_ceil(group_a);
    let group_a = n_a.div_ceil(tasks_a);
    let wanted = threads::n_threads() * 6;
    let tasks_b = wanted.div_ceil(tasks_a).clamp(1, n_b);
    let tiles_min = (1usize << 19).div_ceil(flops_per_tile);
    let group_b = n_b.div_ceil(tasks_b).max(tiles_min.div_ceil(group_a)).min(32).min(n_b);
    (group_a, group_b)
}

/// The part of the product that one packing serves.
struct Block {
    i0: usize,
    j0: usize,
    k0: usize,
    mc: usize,
    nc: usize,
    kc: usize,
}

#[cfg(test)]
mod tests;
