//! Packing: copies of A and B in the order in which the register tile reads them.
//!
//! ```text
//! panel of A, row-major   row 0: k0 k1 … kc, row 1: …     rows A_PITCH apart
//! panel of A, transposed  k0: rows 0 … mr, k1: …          mr numbers per step
//! panel of B              k0: columns 0 … nr, k1: …       nr numbers per step
//! ```
//!
//! The tile reads whole vectors of B and single numbers of A. So B must be step by step, and A can
//! stay as it lies, which makes its packing a plain copy. Padding with zeros lets the tile ignore
//! edges; it only writes fewer rows and columns there.

use super::{A_PITCH, CacheBlock, Job, Matrix};
use crate::simd::{Kernel, Simd};

/// Packs one panel of A: `mr` rows, row by row ([`A_PITCH`] apart) if A is row-major, or step by
/// step along K (`mr` numbers each) if A is transposed. Rows beyond the matrix are 0.
pub(super) struct PackA<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) block: &'a CacheBlock,
    pub(super) first: usize,
    pub(super) mr: usize,
    pub(super) dst: &'a mut [f32],
}

impl Kernel for PackA<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, block, first, mr, dst } = self;
        let rows = mr.min(block.mc - first);
        let src = &job.a.data[offset(&job.a, block.i0 + first, block.k0)..];
        if job.a.col_stride == 1 {
            for i in 0..rows {
                let row = &src[i * job.a.row_stride..][..block.kc];
                dst[i * A_PITCH..][..block.kc].copy_from_slice(row);
            }
            for i in rows..mr {
                dst[i * A_PITCH..][..block.kc].fill(0.0);
            }
            return;
        }
        copy_steps(s, src, &job.a, (rows, mr), block.kc, dst);
    }
}

/// Packs one panel of B: `nr` neighbouring columns for each step along K. Columns beyond the matrix
/// are 0.
pub(super) struct PackB<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) block: &'a CacheBlock,
    pub(super) first: usize,
    pub(super) nr: usize,
    pub(super) dst: &'a mut [f32],
}

impl Kernel for PackB<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, block, first, nr, dst } = self;
        let cols = nr.min(block.nc - first);
        let src = &job.b.data[offset(&job.b, block.k0, block.j0 + first)..];
        // For the panel, the columns of B are the "rows" of its transpose.
        let b =
            Matrix { data: job.b.data, row_stride: job.b.col_stride, col_stride: job.b.row_stride };
        if b.row_stride == 1 {
            return copy_steps(s, src, &b, (cols, nr), block.kc, dst);
        }
        let lanes = S::LANES;
        let whole = block.kc - block.kc % lanes;
        let mut j = 0;
        while b.col_stride == 1 && j + lanes <= cols {
            for k in (0..whole).step_by(lanes) {
                let (src, dst) = (&src[j * b.row_stride + k..], &mut dst[k * nr + j..]);
                debug_assert!(src.len() > (lanes - 1) * b.row_stride + lanes - 1);
                // SAFETY: rows j to j + lanes and steps k to k + lanes lie within B and the panel.
                unsafe { s.transpose(src.as_ptr(), b.row_stride, dst.as_mut_ptr(), nr) };
            }
            copy_scalar(src, &b, j..j + lanes, whole..block.kc, nr, dst);
            j += lanes;
        }
        copy_scalar(src, &b, j..cols, 0..block.kc, nr, dst);
        if cols < nr {
            for step in dst.chunks_mut(nr) {
                step[cols..].fill(0.0);
            }
        }
    }
}

/// Position of element (i, j).
fn offset(matrix: &Matrix<'_>, i: usize, j: usize) -> usize {
    i * matrix.row_stride + j * matrix.col_stride
}

/// Copies `kc` steps of `n` neighbouring numbers each into steps of `width`, padding with 0.
#[inline(always)]
fn copy_steps<S: Simd>(
    s: S,
    src: &[f32],
    matrix: &Matrix<'_>,
    (n, width): (usize, usize),
    kc: usize,
    dst: &mut [f32],
) {
    assert!(dst.len() >= kc * width && src.len() >= (kc - 1) * matrix.col_stride + n);
    for k in 0..kc {
        let mut i = 0;
        while i < width {
            let (room, have) = ((width - i).min(S::LANES), n.saturating_sub(i).min(S::LANES));
            // SAFETY: `have` numbers of the source step and `room` of the target step are in
            // bounds by the assertion above.
            unsafe {
                let v = s.load_n(src.as_ptr().add(k * matrix.col_stride + i.min(n)), have);
                s.store_n(dst.as_mut_ptr().add(k * width + i), v, room);
            }
            i += S::LANES;
        }
    }
}

/// Copies with strides, number by number: the remainder of the vector paths.
#[inline(always)]
fn copy_scalar(
    src: &[f32],
    matrix: &Matrix<'_>,
    columns: std::ops::Range<usize>,
    steps: std::ops::Range<usize>,
    nr: usize,
    dst: &mut [f32],
) {
    for j in columns {
        for k in steps.clone() {
            dst[k * nr + j] = src[j * matrix.row_stride + k * matrix.col_stride];
        }
    }
}
