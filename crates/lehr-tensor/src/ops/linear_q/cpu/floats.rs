//! Few rows of activations times weights of 16 or 32 bits or of NF4, which become f32 in registers.
//!
//! The order of additions is that of the matrix product ([`gemm`](crate::gemm)), which multiplies
//! many rows: one chain of multiply-adds for each pass of [`pass`] columns, and the passes one
//! after the other. A row of activations gives the same bits alone and among many. That is why 16
//! rows of weights are transposed in registers instead of being multiplied in dot products.

use std::ops::Range;

use lehr_kernels::gemm::pass;
use lehr_kernels::simd::bytes::{Bytes, BytesKernel, dispatch_bytes, has_wide_dot};
use lehr_kernels::threads::SharedMut;

use super::decode::{WeightRows, ahead, split};
use crate::Result;
use crate::quant::{NF4, NF4_GROUP, QMatrix};

/// Rows of weights at a time, one per lane.
const ROWS: usize = 16;

/// A format whose numbers are floats, or levels of a table of floats.
pub(super) trait Float: Copy + Send + Sync {
    /// Numbers `16 k` to `16 k + 15` of a row.
    ///
    /// # Safety
    /// They can be read, and so can the scales of the row if they lie apart.
    unsafe fn load<S: Bytes>(self, s: S, row: *const u8, scales: *const f32, k: usize) -> S::F;
}

macro_rules! float {
    ($name:ident, $size:literal, $load:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Float for $name {
            #[inline(always)]
            unsafe fn load<S: Bytes>(self, s: S, row: *const u8, _: *const f32, k: usize) -> S::F {
                // SAFETY: promised by the caller.
                unsafe { s.$load(row.add(k * 16 * $size).cast()) }
            }
        }
    };
}

float!(F32, 4, load_f32);
float!(F16, 2, load_f16);
float!(Bf16, 2, load_bf16);

#[derive(Clone, Copy)]
pub(super) struct Nf4;

impl Float for Nf4 {
    #[inline(always)]
    unsafe fn load<S: Bytes>(self, s: S, row: *const u8, scales: *const f32, k: usize) -> S::F {
        // SAFETY: promised by the caller.
        unsafe {
            let scale = s.splat_f32(*scales.add(k / (NF4_GROUP / 16)));
            s.mul(scale, s.load_nibbles(&NF4, row.add(k * 8)))
        }
    }
}

/// `y = x Wᵀ + bias` for any number of rows of `x`.
pub(super) fn multiply<W: Float>(
    format: W,
    w: &QMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let cols = w.cols();
    let y = SharedMut::new(y);
    // With 32 registers a block of weights serves eight rows.
    let most = if has_wide_dot() { 8 } else { 4 };
    split(w, x.len() / cols, most, ROWS, |rows, first, count| {
        let job = Job { w, x: &x[first * cols..], bias, y, first, rows };
        match count {
            1 => dispatch_bytes(Rows::<W, 1> { format, job }),
            2 => dispatch_bytes(Rows::<W, 2> { format, job }),
            4 => dispatch_bytes(Rows::<W, 4> { format, job }),
            _ => dispatch_bytes(Rows::<W, 8> { format, job }),
        }
    });
    Ok(())
}

struct Job<'a> {
    w: &'a QMatrix,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    y: SharedMut<f32>,
    /// The first row of activations.
    first: usize,
    /// Rows of weights.
    rows: Range<usize>,
}

/// `M` rows of activations times some rows of weights.
struct Rows<'a, W, const M: usize> {
    format: W,
    job: Job<'a>,
}

impl<W: Float, const M: usize> BytesKernel for Rows<'_, W, M> {
    type Out = ();

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) {
        let Self { format, job } = self;
        let (cols, n_out, row_bytes) = (job.w.cols(), job.w.rows(), job.w.row_bytes());
        let pass = pass(cols);
        for r in job.rows.clone().step_by(ROWS) {
            let n = ROWS.min(job.rows.end - r);
            let rows = WeightRows::new(job.w, r..r + n, row_bytes);
            let x = &job.x[..M * cols];
            let sums = Sums::<'_, W, M> { format, rows: &rows, row_bytes, cols, x };
            let mut total = [s.zero(); M];
            for k0 in (0..cols).step_by(pass) {
                let acc = sums.pass(s, k0..cols.min(k0 + pass));
                for i in 0..M {
                    total[i] = match (k0, job.bias) {
                        (0, None) => acc[i],
                        (0, Some(bias)) => {
                            let mut padded = [0.0f32; ROWS];
                            padded[..n].copy_from_slice(&bias[r..r + n]);
                            // SAFETY: a vector of floats.
                            s.add(acc[i], unsafe { s.load_f32(padded.as_ptr()) })
                        }
                        _ => s.add(acc[i], total[i]),
                    };
                }
            }
            for (i, total) in total.into_iter().enumerate() {
                let mut out = [0.0f32; ROWS];
                // SAFETY: room for a vector; these columns of y are this task's alone.
                unsafe {
                    s.store_f32(out.as_mut_ptr(), total);
                    let y = job.y.slice((job.first + i) * n_out + r, n);
                    y.copy_from_slice(&out[..n]);
                }
            }
        }
    }
}

/// The sums of up to 16 rows of weights with `M` rows of activations.
struct Sums<'a, W, const M: usize> {
    format: W,
    rows: &'a WeightRows<ROWS>,
    row_bytes: usize,
    cols: usize,
    x: &'a [f32],
}

impl<W: Float, const M: usize> Sums<'_, W, M> {
    /// Those of one pass; lanes behind the last row repeat it.
    #[inline(always)]
    fn pass<S: Bytes>(&self, s: S, pass: Range<usize>) -> [S::F; M] {
        let step_bytes = self.row_bytes * 16 / self.cols;
        let mut acc = [s.zero(); M];
        let whole = pass.end - pass.len() % 16;
        for k in (pass.start..whole).step_by(16) {
            let at = k / 16 * step_bytes;
            let mut rows = [0.0f32; ROWS * 16];
            for i in 0..ROWS {
                let (row, scales) = (self.rows.codes[i], self.rows.scales[i]);
                s.prefetch(ahead(row, at, self.row_bytes, ROWS));
                // SAFETY: 16 numbers from k are in the row, and there is room for a vector.
                unsafe {
                    let v = self.format.load(s, row, scales, k / 16);
                    s.store_f32(rows.as_mut_ptr().add(i * 16), v);
                }
            }
            self.multiply(s, &rows, k, 16, &mut acc);
        }
        if whole < pass.end {
            let at = whole / 16 * step_bytes;
            let mut rows = [0.0f32; ROWS * 16];
            for i in 0..ROWS {
                // The columns behind the last whole vector. Such rows have no scales apart.
                let mut padded = [0u8; 64];
                // SAFETY: the rest of the row can be read, fewer than 16 numbers of at most 4
                // bytes.
                unsafe {
                    let rest = self.rows.codes[i].add(at);
                    rest.copy_to_nonoverlapping(padded.as_mut_ptr(), self.row_bytes - at);
                    let v = self.format.load(s, padded.as_ptr(), self.rows.scales[i], 0);
                    s.store_f32(rows.as_mut_ptr().add(i * 16), v);
                }
            }
            self.multiply(s, &rows, whole, pass.end - whole, &mut acc);
        }
        acc
    }

    /// Adds the products of `n` columns from `k`; `rows` has 16 numbers of each row of weights.
    #[inline(always)]
    fn multiply<S: Bytes>(
        &self,
        s: S,
        rows: &[f32; ROWS * 16],
        k: usize,
        n: usize,
        acc: &mut [S::F; M],
    ) {
        assert!(n <= 16 && k + n <= self.cols && self.x.len() == M * self.cols);
        let mut steps = [0.0f32; 16 * ROWS];
        // SAFETY: 16 vectors of 16 floats each, one behind the other.
        unsafe { s.transpose(rows.as_ptr().cast(), 64, steps.as_mut_ptr().cast(), 64) };
        for step in 0..n {
            // SAFETY: a vector of each step, and column k + step of each row of x.
            unsafe {
                let v = s.load_f32(steps.as_ptr().add(step * ROWS));
                for i in 0..M {
                    let x = *self.x.as_ptr().add(i * self.cols + k + step);
                    acc[i] = s.fma(s.splat_f32(x), v, acc[i]);
                }
            }
        }
    }
}
