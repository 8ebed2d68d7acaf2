//! Row-wise kernels of `layer_norm`, also used by `add_layer_norm`.

use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::rows_per_task;

/// Scale and shift of the rows, and the `eps` that keeps their deviation above 0.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

/// The statistics of rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) mean: &'a [f32],
    pub(crate) rstd: &'a [f32],
}

pub(crate) fn forward(
    x: &[f32],
    affine: Affine<'_>,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let d = affine.weight.len();
    let rows = rows_per_task(d);
    let (mean, rstd) = (SharedMut::new(mean), SharedMut::new(rstd));
    threads::run_chunks(y, rows * d, |index, y| {
        let (start, n) = (index * rows, y.len() / d);
        // SAFETY: tasks own disjoint rows.
        let (mean, rstd) = unsafe { (mean.slice(start, n), rstd.slice(start, n)) };
        dispatch(Forward { x: &x[start * d..], affine, y, mean, rstd });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    affine: Affine<'a>,
    y: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.affine.weight.len();
        for (r, y) in self.y.chunks_exact_mut(d).enumerate() {
            let x = &self.x[r * d..][..d];
            let (mean, rstd) = normalise(s, x, self.affine, y);
            self.mean[r] = mean;
            self.rstd[r] = rstd;
        }
    }
}

/// Normalises one row and returns its mean and reciprocal deviation.
#[inline(always)]
pub(crate) fn normalise<S: Simd>(s: S, x: &[f32], affine: Affine<'_>, y: &mut [f32]) -> (f32, f32) {
    let d = x.len();
    let mean = sum(s, x) / d as f32;
    let rstd = 1.0 / (sum_of_squares(s, x, mean) / d as f32 + affine.eps).sqrt();
    let (weight, y) = (&affine.weight[..d], &mut y[..d]);
    match affine.bias {
        Some(bias) => {
            let bias = &bias[..d];
            for k in 0..d {
                y[k] = (x[k] - mean) * rstd * weight[k] + bias[k];
            }
        }
        None => {
            for k in 0..d {
                y[k] = (x[k] - mean) * rstd * weight[k];
            }
        }
    }
    (mean, rstd)
}

/// `Σ x` in four chains of additions.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut acc = [s.splat(0.0); 4];
    let fours = x.chunks_exact(4 * S::LANES);
    let rest: f32 = fours.remainder().iter().sum();
    for four in fours {
        for v in 0..4 {
            // SAFETY: the chunk has four vectors.
            acc[v] = s.add(acc[v], unsafe { s.load(four.as_ptr().add(v * S::LANES)) });
        }
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]))) + rest
}

/// `Σ (x − mean)²` in four chains of additions.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let mut acc = [s.splat(0.0); 4];
    let fours = x.chunks_exact(4 * S::LANES);
    let rest: f32 = fours.remainder().iter().map(|x| (x - mean) * (x - mean)).sum();
    let center = s.splat(mean);
    for four in fours {
        for v in 0..4 {
            // SAFETY: the chunk has four vectors.
            let diff = s.sub(unsafe { s.load(four.as_ptr().add(v * S::LANES)) }, center);
            acc[v] = s.fma(diff, diff, acc[v]);
        }
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]))) + rest
}

/// Reads `n <= LANES` floats; whole vectors without a mask, which costs time.
///
/// # Safety
/// `n` floats can be read from `src`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, src: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { s.load(src) } else { s.load_n(src, n) } }
}

/// `dx = rstd (g − mean(g) − x̂ · mean(g x̂))` with `g = dy · weight`.
pub(crate) fn backward_input(
    x: &[f32],
    weight: &[f32],
    stats: Rows<'_>,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let d = weight.len();
    let rows = rows_per_task(d);
    threads::run_chunks(dx, rows * d, |index, dx| {
        let start = index * rows;
        let stats = Rows { mean: &stats.mean[start..], rstd: &stats.rstd[start..] };
        let (x, dy) = (&x[start * d..], &dy[start * d..]);
        dispatch(BackwardInput { x, weight, stats, dy, dx, accumulate });
    });
}

struct BackwardInput<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    stats: Rows<'a>,
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for BackwardInput<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for (r, dx) in self.dx.chunks_exact_mut(d).enumerate() {
            let (x, dy) = (&self.x[r * d..][..d], &self.dy[r * d..][..d]);
            let (mean, rstd) = (self.stats.mean[r], self.stats.rstd[r]);
            let (center, scale) = (s.splat(mean), s.splat(rstd));
            let mut sums = [s.splat(0.0); 2];
            for k in (0..d).step_by(S::LANES) {
                let n = (d - k).min(S::LANES);
                // SAFETY: `n` numbers from k lie within rows of width d; `g` is 0 beyond them.
                unsafe {
                    let w = load(s, self.weight.as_ptr().add(k), n);
                    let g = s.mul(load(s, dy.as_ptr().add(k), n), w);
                    let x_hat = s.mul(s.sub(load(s, x.as_ptr().add(k), n), center), scale);
                    sums[0] = s.add(sums[0], g);
                    sums[1] = s.fma(g, x_hat, sums[1]);
                }
            }
            let shift = s.sum(sums[0]) / d as f32;
            let pull = s.sum(sums[1]) / d as f32;
            let weight = &self.weight[..d];
            for k in 0..d {
                let x_hat = (x[k] - mean) * rstd;
                let value = rstd * (dy[k] * weight[k] - shift - x_hat * pull);
                dx[k] = if self.accumulate { dx[k] + value } else { value };
            }
        }
    }
}

/// `dweight = Σ dy · x̂` and `dbias = Σ dy` over the rows: tasks own columns, and rows are added
/// in order.
pub(crate) fn backward_columns(
    x: &[f32],
    stats: Rows<'_>,
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    /// Columns per task, four cache lines.
    const COLUMNS: usize = 64;
    let d = dw.len();
    let db = SharedMut::new(db);
    threads::run_chunks(dw, COLUMNS, |index, dw| {
        let start = index * COLUMNS;
        // SAFETY: tasks own disjoint columns.
        let db = unsafe { db.slice(start, dw.len()) };
        dw.fill(0.0);
        db.fill(0.0);
        dispatch(BackwardColumns { x, stats, dy, dw, db, start, d });
    });
}

struct BackwardColumns<'a> {
    x: &'a [f32],
    stats: Rows<'a>,
    dy: &'a [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
    start: usize,
    d: usize,
}

impl Kernel for BackwardColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Rows summed in registers before they are added: their stripe fits the first cache.
        const ROWS: usize = 32;
        let (n_rows, width) = (self.stats.rstd.len(), self.dw.len());
        assert!(self.x.len() >= n_rows * self.d && self.dy.len() >= n_rows * self.d);
        assert!(self.start + width <= self.d && self.db.len() == width);
        for first in (0..n_rows).step_by(ROWS) {
            for k in (0..width).step_by(S::LANES) {
                let n = (width - k).min(S::LANES);
                let (mut w_sum, mut b_sum) = (s.splat(0.0), s.splat(0.0));
                for r in first..n_rows.min(first + ROWS) {
                    let at = r * self.d + self.start + k;
                    let mean = s.splat(self.stats.mean[r]);
                    let rstd = s.splat(self.stats.rstd[r]);
                    // SAFETY: `n` numbers from column `start + k` lie within row r.
                    unsafe {
                        let dy = load(s, self.dy.as_ptr().add(at), n);
                        let x = load(s, self.x.as_ptr().add(at), n);
                        w_sum = s.fma(dy, s.mul(s.sub(x, mean), rstd), w_sum);
                        b_sum = s.add(b_sum, dy);
                    }
                }
                // SAFETY: `n` numbers from k lie within both slices of `width`.
                unsafe {
                    let (dw, db) = (self.dw.as_mut_ptr().add(k), self.db.as_mut_ptr().add(k));
                    s.store_n(dw, s.add(load(s, dw, n), w_sum), n);
                    s.store_n(db, s.add(load(s, db, n), b_sum), n);
                }
            }
        }
    }
}
