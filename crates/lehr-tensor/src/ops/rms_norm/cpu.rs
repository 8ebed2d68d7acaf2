//! Row-wise kernels of `rms_norm`.

use lehr_kernels::gemm::vector::dot;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::rows_per_task;

pub(crate) fn forward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    offset: f32,
    y: &mut [f32],
    rstd: &mut [f32],
) {
    let d = weight.len();
    let rows = rows_per_task(d);
    let rstd = SharedMut::new(rstd);
    threads::run_chunks(y, rows * d, |index, y| {
        // SAFETY: tasks own disjoint rows.
        let rstd = unsafe { rstd.slice(index * rows, y.len() / d) };
        dispatch(Forward { x: &x[index * rows * d..], weight, eps, offset, y, rstd });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    y: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for ((x, y), rstd) in
            self.x.chunks_exact(d).zip(self.y.chunks_exact_mut(d)).zip(self.rstd.iter_mut())
        {
            *rstd = 1.0 / (dot(s, x, x) / d as f32 + self.eps).sqrt();
            for k in 0..d {
                y[k] = x[k] * *rstd * (self.weight[k] + self.offset);
            }
        }
    }
}

/// `dx = rstd (g − x · rstd² · mean(g x))` with `g = dy · weight`.
pub(crate) fn backward_input(
    x: &[f32],
    weight: &[f32],
    offset: f32,
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let d = weight.len();
    let rows = rows_per_task(d);
    threads::run_chunks(dx, rows * d, |index, dx| {
        let start = index * rows;
        let (x, dy, rstd) = (&x[start * d..], &dy[start * d..], &rstd[start..]);
        dispatch(BackwardInput { x, weight, offset, rstd, dy, dx, accumulate });
    });
}

struct BackwardInput<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    offset: f32,
    rstd: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for BackwardInput<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        let offset = s.splat(self.offset);
        for (r, dx) in self.dx.chunks_exact_mut(d).enumerate() {
            let (x, dy) = (&self.x[r * d..][..d], &self.dy[r * d..][..d]);
            let rstd = self.rstd[r];
            let mut sum = s.splat(0.0);
            for k in (0..d).step_by(S::LANES) {
                let n = (d - k).min(S::LANES);
                // SAFETY: `n` numbers from k lie within rows of width d.
                unsafe {
                    let w = s.add(s.load_n(self.weight.as_ptr().add(k), n), offset);
                    let g = s.mul(s.load_n(dy.as_ptr().add(k), n), w);
                    sum = s.fma(g, s.load_n(x.as_ptr().add(k), n), sum);
                }
            }
            let pull = s.sum(sum) * rstd * rstd / d as f32;
            for k in 0..d {
                let g = dy[k] * (self.weight[k] + self.offset);
                let value = rstd * (g - x[k] * pull);
                dx[k] = if self.accumulate { dx[k] + value } else { value };
            }
        }
    }
}

/// `dweight = Σ over rows of dy · x · rstd`: tasks own columns, rows are added in order.
pub(crate) fn backward_weight(
    x: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    accumulate: bool,
) {
    /// Columns per task, four cache lines.
    const COLUMNS: usize = 64;
    let d = dw.len();
    threads::run_chunks(dw, COLUMNS, |index, dw| {
        let start = index * COLUMNS;
        if !accumulate {
            dw.fill(0.0);
        }
        dispatch(BackwardWeight { x, rstd, dy, dw, start, d });
    });
}

struct BackwardWeight<'a> {
    x: &'a [f32],
    rstd: &'a [f32],
    dy: &'a [f32],
    dw: &'a mut [f32],
    start: usize,
    d: usize,
}

impl Kernel for BackwardWeight<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Rows summed in registers before they are added: their stripe fits the first cache.
        const ROWS: usize = 32;
        let (n_rows, width) = (self.rstd.len(), self.dw.len());
        assert!(self.x.len() >= n_rows * self.d && self.dy.len() >= n_rows * self.d);
        assert!(self.start + width <= self.d);
        for first in (0..n_rows).step_by(ROWS) {
            for k in (0..width).step_by(S::LANES) {
                let n = (width - k).min(S::LANES);
                let mut sum = s.splat(0.0);
                for r in first..n_rows.min(first + ROWS) {
                    let at = r * self.d + self.start + k;
                    // SAFETY: `n` numbers from column `start + k` lie within row r.
                    unsafe {
                        let dy = s.load_n(self.dy.as_ptr().add(at), n);
                        let x = s.load_n(self.x.as_ptr().add(at), n);
                        sum = s.fma(dy, s.mul(x, s.splat(self.rstd[r])), sum);
                    }
                }
                // SAFETY: `n` numbers from k lie within the slice of `width`.
                unsafe {
                    let dw = self.dw.as_mut_ptr().add(k);
                    s.store_n(dw, s.add(s.load_n(dw, n), sum), n);
                }
            }
        }
    }
}
