//! The orthogonal factor of a matrix, approximately: five steps of Polar Express on the CPU.

use lehr_kernels::gemm::{Matrix, gemm};
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::Result;

/// Coefficients a, b, c of the five steps `X ← a X + (b A + c A²) X`, for singular values from
/// about 1e-3 to 1 (Amsel et al. 2025, <https://arxiv.org/abs/2505.16932>,
/// with a safety factor of 1.02). Five steps bring such a value near 1.
pub(super) const STEPS: [[f32; 3]; 5] = [
    [8.156_555, -22.483_293, 15.878_77],
    [4.042_93, -2.808_917_5, 0.500_017_8],
    [3.891_667_8, -2.772_484_2, 0.506_064_8],
    [3.285_753_7, -2.368_129_5, 0.464_490_24],
    [2.346_541_3, -1.709_782_8, 0.423_235_5],
];

/// Rows of a symmetric product that are computed together. A block of rows ends at its diagonal
/// block, so short blocks compute little above the diagonal. It is a multiple of the height of most
/// register tiles (14, 8 and 4 rows); docs/experiments.md has the measurement.
const BLOCK: usize = 112;
/// Side of the squares in which a triangle is mirrored: a multiple of the lanes of every vector.
const TILE: usize = 32;

/// Memory of one orthogonalisation of a matrix `[rows, cols]`.
pub(super) struct Work<'a> {
    /// The matrix, and in the end its orthogonal factor.
    pub(super) x: &'a mut [f32],
    /// As much again.
    pub(super) y: &'a mut [f32],
    /// Two matrices of the shorter side.
    pub(super) gram: &'a mut [f32],
    pub(super) polynomial: &'a mut [f32],
}

/// Replaces `work.x [rows, cols]`, whose singular values are at most 1, by a matrix with the same
/// singular vectors and singular values near 1.
pub(super) fn orthogonalize(rows: usize, cols: usize, work: &mut Work<'_>) -> Result<()> {
    let side = rows.min(cols);
    let Work { x, y, gram, polynomial } = work;
    let (mut x, mut y) = (&mut **x, &mut **y);
    for step in STEPS {
        // X Xᵀ of a wide matrix, Xᵀ X of a tall one.
        if rows <= cols {
            let left = |i0: usize| Matrix::rows(&x[i0 * cols..], cols);
            symmetric_product(side, cols, left, Matrix::transposed(x, cols), gram)?;
        } else {
            let left = |i0: usize| Matrix::transposed(&x[i0..], cols);
            symmetric_product(side, rows, left, Matrix::rows(x, cols), gram)?;
        }
        mirror(side, gram);
        let left = |i0: usize| Matrix::rows(&gram[i0 * side..], side);
        symmetric_product(side, side, left, Matrix::rows(gram, side), polynomial)?;
        combine(side, step, gram, polynomial);
        mirror(side, polynomial);
        let p = Matrix::rows(polynomial, side);
        let x_ = Matrix::rows(x, cols);
        let (a, b) = if rows <= cols { (p, x_) } else { (x_, p) };
        product((rows, cols, side), a, b, y, cols)?;
        std::mem::swap(&mut x, &mut y);
    }
    // After an odd number of steps the result is where the scratch was.
    const { assert!(STEPS.len() % 2 == 1) };
    y.copy_from_slice(x);
    Ok(())
}

/// `C = A B`: the only product, so another number format needs another body here alone.
fn product(
    size: (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_stride: usize,
) -> Result<()> {
    gemm(size, a, b, c, c_stride, false, None)
}

/// Computes the lower triangle of the symmetric `C [n, n] = A B` for A `[n, k]`; `left(i)` is A
/// from row i on. Elements above the diagonal are unspecified.
fn symmetric_product<'a>(
    n: usize,
    k: usize,
    left: impl Fn(usize) -> Matrix<'a>,
    right: Matrix<'a>,
    c: &mut [f32],
) -> Result<()> {
    for i0 in (0..n).step_by(BLOCK) {
        let end = n.min(i0 + BLOCK);
        product((end - i0, end, k), left(i0), right, &mut c[i0 * n..], n)?;
    }
    Ok(())
}

/// `C ← a I + b A + c C` on and below the diagonal.
pub(super) fn combine(n: usize, [a, b, c]: [f32; 3], gram: &[f32], squared: &mut [f32]) {
    let rows = (lehr_kernels::CHUNK / n).max(1);
    threads::run_chunks(squared, rows * n, |index, chunk| {
        for (i, row) in chunk.chunks_exact_mut(n).enumerate() {
            let i = index * rows + i;
            for (x, gram) in row[..=i].iter_mut().zip(&gram[i * n..]) {
                *x = b * gram + c * *x;
            }
            row[i] += a;
        }
    });
}

/// Copies what is below the diagonal to above it.
pub(super) fn mirror(n: usize, x: &mut [f32]) {
    assert!(n * n <= x.len(), "mirror: a square matrix");
    let x = SharedMut::new(x);
    threads::run(n.div_ceil(TILE), |tile| dispatch(Mirror { n, x, first: tile * TILE }));
}

/// Mirrors the rows of a tile, which become columns that only its task writes.
struct Mirror {
    n: usize,
    x: SharedMut<f32>,
    first: usize,
}

impl Kernel for Mirror {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { n, x, first } = self;
        let (at, end) = (x.ptr(), n.min(first + TILE));
        // Whole tiles left of the diagonal, in squares of vectors.
        let whole = if end - first == TILE { first } else { 0 };
        for j in (0..whole).step_by(S::LANES) {
            for i in (first..end).step_by(S::LANES) {
                // SAFETY: both squares are in the matrix, the one read below the diagonal, where no
                // task writes, and the one written above it.
                unsafe { s.transpose(at.add(i * n + j), n, at.add(j * n + i), n) };
            }
        }
        for i in first..end {
            for j in whole..i {
                // SAFETY: as above.
                unsafe { *at.add(j * n + i) = *at.add(i * n + j) };
            }
        }
    }
}

#[cfg(test)]
pub(super) fn orthogonal_factor(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let side = rows.min(cols);
    let (mut x, mut y) = (x.to_vec(), vec![0.0; rows * cols]);
    let (mut gram, mut polynomial) = (vec![0.0; side * side], vec![0.0; side * side]);
    let mut work = Work { x: &mut x, y: &mut y, gram: &mut gram, polynomial: &mut polynomial };
    orthogonalize(rows, cols, &mut work).unwrap();
    x
}
