//! Row-wise kernels of softmax; the loss over a vocabulary uses them too.

use lehr_kernels::gemm::vector::dot;
use lehr_kernels::math;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use crate::ops::rows_per_task;

/// `y = e^x / Σ e^x` for rows of width `d`.
pub(super) fn forward(d: usize, x: &[f32], y: &mut [f32]) {
    let chunk = rows_per_task(d) * d;
    threads::run_chunks(y, chunk, |index, y| {
        dispatch(Forward { d, x: &x[index * chunk..][..y.len()], y });
    });
}

struct Forward<'a> {
    d: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_exact(self.d).zip(self.y.chunks_exact_mut(self.d)) {
            let (max, sum) = max_and_sum(s, x);
            // SAFETY: both rows have width d and do not overlap.
            unsafe { exp_scaled(s, x.as_ptr(), y.as_mut_ptr(), self.d, max, 1.0 / sum) };
        }
    }
}

/// `m = max x` and `Σ e^(x − m)` of a row that is not empty.
///
/// The row is taken in blocks that stay in the first-level cache, so that it comes from memory
/// once; when a block raises the maximum, the sum so far is rescaled (Milakov and Gimelshein 2018,
/// <https://arxiv.org/abs/1805.02867>).
#[inline(always)]
pub(crate) fn max_and_sum<S: Simd>(s: S, row: &[f32]) -> (f32, f32) {
    /// 8 KiB.
    const BLOCK: usize = 2048;
    let (mut max, mut sum) = (f32::MIN, 0.0f32);
    for block in row.chunks(BLOCK) {
        let peak = block_max(s, block);
        if peak > max {
            sum *= (max - peak).exp();
            max = peak;
        }
        sum += block_sum(s, block, max);
    }
    (max, sum)
}

/// Chains of vector operations that run side by side.
const CHAINS: usize = 4;

#[inline(always)]
fn block_max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut max = [s.splat(f32::MIN); CHAINS];
    let step = CHAINS * S::LANES;
    let whole = x.len() - x.len() % step;
    for i in (0..whole).step_by(step) {
        for (c, max) in max.iter_mut().enumerate() {
            // SAFETY: i + step <= len.
            *max = s.max(*max, unsafe { s.load(x.as_ptr().add(i + c * S::LANES)) });
        }
    }
    for rest in x[whole..].chunks(S::LANES) {
        max[0] = s.max(max[0], padded(s, rest));
    }
    s.hmax(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])))
}

#[inline(always)]
fn block_sum<S: Simd>(s: S, x: &[f32], max: f32) -> f32 {
    let mut sum = [s.splat(0.0); CHAINS];
    let shift = s.splat(max);
    let step = CHAINS * S::LANES;
    let whole = x.len() - x.len() % step;
    for i in (0..whole).step_by(step) {
        for (c, sum) in sum.iter_mut().enumerate() {
            // SAFETY: i + step <= len.
            let v = unsafe { s.load(x.as_ptr().add(i + c * S::LANES)) };
            *sum = s.add(*sum, math::exp(s, s.sub(v, shift)));
        }
    }
    for rest in x[whole..].chunks(S::LANES) {
        sum[0] = s.add(sum[0], math::exp(s, s.sub(padded(s, rest), shift)));
    }
    s.sum(s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3])))
}

/// Up to `LANES` numbers; the other lanes hold the smallest float, whose exponential is (almost) 0.
#[inline(always)]
fn padded<S: Simd>(s: S, x: &[f32]) -> S::V {
    let mut lanes = [f32::MIN; 16];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: no vector has more than 16 lanes.
    unsafe { s.load(lanes.as_ptr()) }
}

/// `y = e^(x − max) · scale`.
///
/// # Safety
/// Both pointers are valid for `len` numbers; they are equal or do not overlap.
#[inline(always)]
pub(crate) unsafe fn exp_scaled<S: Simd>(
    s: S,
    x: *const f32,
    y: *mut f32,
    len: usize,
    max: f32,
    scale: f32,
) {
    let (shift, factor) = (s.splat(max), s.splat(scale));
    let mut i = 0;
    // SAFETY: whole vectors, then the rest.
    unsafe {
        while i + S::LANES <= len {
            let e = math::exp(s, s.sub(s.load(x.add(i)), shift));
            s.store(y.add(i), s.mul(e, factor));
            i += S::LANES;
        }
        let n = len - i;
        let e = math::exp(s, s.sub(s.load_n(x.add(i), n), shift));
        s.store_n(y.add(i), s.mul(e, factor), n);
    }
}

/// `dx (+)= y (dy − Σ dy y)`.
pub(super) fn backward(d: usize, y: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let chunk = rows_per_task(d) * d;
    threads::run_chunks(dx, chunk, |index, dx| {
        let range = index * chunk..index * chunk + dx.len();
        let (y, dy) = (&y[range.clone()], &dy[range]);
        dispatch(Backward { d, y, dy, dx, accumulate });
    });
}

struct Backward<'a> {
    d: usize,
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.d;
        for (r, dx) in self.dx.chunks_exact_mut(d).enumerate() {
            let (y, dy) = (&self.y[r * d..][..d], &self.dy[r * d..][..d]);
            let mean = dot(s, y, dy);
            for k in 0..d {
                let value = y[k] * (dy[k] - mean);
                dx[k] = if self.accumulate { dx[k] + value } else { value };
            }
        }
    }
}
