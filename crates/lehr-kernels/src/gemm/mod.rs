//! Matrix products: packed panels, one register tile per instruction set, fused bias.
//!
//! The scheme is that of Goto and van de Geijn 2008 ("Anatomy of high-performance matrix
//! multiplication"), <https://doi.org/10.1145/1356052.1356053>. Each loop narrows A, B and C to
//! what fits into the next faster memory (sizes for AVX-512):
//!
//! ```text
//! for j0 in N by NC = 2048                    columns of B and C
//!   for k0 in K by pass(K) ≤ KC = 512         one pass; adds to all rows of C
//!     pack B[k0.., j0..]                      ≤ 4 MiB           last-level cache, shared
//!     for i0 in M by MC = 2016                rows of A and C
//!       pack A[i0.., k0..]                    ≤ 4.1 MiB         last-level cache, shared
//!       tasks: ≤ 12 panels of A               ≤ 347 KiB         second-level cache of a core
//!            × ≤ 32 panels of B
//!         for each panel of B: KC × 32        ≤ 64 KiB          stays in the nearest caches
//!           for each panel of A: 14 × KC      29 KiB            streams from the second level
//!             tile of C: 14 × 32              28 registers      summed over the pass
//! ```
//!
//! The innermost loop does 14 · 32 multiply-adds for 14 + 32 numbers read, so arithmetic and not
//! memory sets the pace. Packing costs one copy of A and B. It makes every read of the tile
//! consecutive, and it absorbs transposed operands.
//!
//! The order of additions along K depends on K alone: one chain of multiply-adds per pass, then the
//! passes in order. So the number of threads, the division into tasks, and the other rows of A and
//! columns of B do not change a bit of C. Products of few rows use other code ([`vector`]) with the
//! same order.

mod pack;
mod tile;
pub mod vector;

use crate::buffer::CpuBuffer;
use crate::simd::{self, Isa, Scalar, Simd};
use crate::threads::{self, SharedMut};
use crate::{DType, Result};

/// Longest part of K handled by one pass of the register tile. A pass reads and writes all of C, so
/// passes are long, although panels of B (64 KiB) then no longer fit into the first-level cache:
/// docs/experiments.md has the measurement.
const KC: usize = 512;
/// Distance between the rows of a packed panel of A: an odd number of cache lines, or else all rows
/// would compete for one cache set.
const A_PITCH: usize = KC + 16;
/// Columns of C per packing of B.
const NC: usize = 2048;
/// Rows of C per packing of A: a multiple of the height of every register tile (14, 8, 6, 4).
const MC: usize = 2016;

/// A matrix in memory: element (i, j) is at `i * row_stride + j * col_stride`.
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
/// If a slice is shorter than its shape requires: callers check shapes at the op's boundary.
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
    // Read once, because packing and tiles must agree on the width of a vector.
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

/// Length of a pass along `k` steps, a multiple of 16. It depends on `k` alone, because it decides
/// the order of additions. Passes have about equal length: a short last one would read and write C
/// for little work.
#[must_use]
pub fn pass(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC)).next_multiple_of(16).min(KC)
}

/// The operands of one product and its instruction set, shared by all tasks.
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

    /// Runs the outer three loops around a register tile of `MR` rows and `NV` vectors.
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
                    let block = CacheBlock { i0, j0, k0, mc, nc, kc };
                    let b_dst = (i0 == 0).then(|| b_pack.as_mut_slice());
                    self.pack::<MR>(&block, nr, a_pack.as_mut_slice(), b_dst);
                    let (a, b) = (a_pack.as_slice(), b_pack.as_slice());
                    self.multiply::<S, MR, NV>(&block, a, b, c);
                }
            }
        }
        Ok(())
    }

    /// Packs the panels of A in parallel, and those of B if they are new.
    fn pack<const MR: usize>(
        &self,
        block: &CacheBlock,
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

    /// Runs the register tiles of one block, in tasks of whole panels.
    fn multiply<S: Simd, const MR: usize, const NV: usize>(
        &self,
        block: &CacheBlock,
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

/// Number of panels of A and of B per task. A task has at least about a megaflop, its panels of A
/// stay in the second-level cache, and each thread gets several tasks if the product is large.
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

/// The part of the product that one packing serves: `mc` rows, `nc` columns and `kc` steps along K,
/// from `i0`, `j0` and `k0`.
struct CacheBlock {
    i0: usize,
    j0: usize,
    k0: usize,
    mc: usize,
    nc: usize,
    kc: usize,
}

#[cfg(test)]
mod tests;
