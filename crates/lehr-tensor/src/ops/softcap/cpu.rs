//! A tanh that is accurate near 0 too, and the passes that use it.

use lehr_kernels::CHUNK;
use lehr_kernels::math;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

/// `tanh x` to 3 ulp: an odd polynomial up to 0.625 (Cephes `tanhf`, Moshier 1989), and
/// `1 − 2 / (e^2|x| + 1)` beyond.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let square = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for c in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
        p = s.fma(p, square, s.splat(c));
    }
    let near = s.fma(s.mul(p, square), x, x);
    let abs = s.max(s.sub(zero, x), x);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(math::exp(s, s.add(abs, abs)), one)));
    let far = s.select_gt(zero, x, s.sub(zero, far), far);
    s.select_gt(abs, s.splat(0.625), far, near)
}

/// The derivative `1 − (y / c)²` where the result is `y`.
#[inline(always)]
pub(crate) fn slope(cap: f32, y: f32) -> f32 {
    let t = y * (1.0 / cap);
    1.0 - t * t
}

/// `y = c tanh(x / c)`.
pub(super) fn forward(cap: f32, x: &[f32], y: &mut [f32]) {
    threads::run_chunks(y, CHUNK, |index, y| {
        dispatch(Forward { cap, x: &x[index * CHUNK..][..y.len()], y });
    });
}

struct Forward<'a> {
    cap: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: both slices have one length and do not overlap.
        unsafe { cap_values(s, self.cap, self.x.as_ptr(), self.y.as_mut_ptr(), self.y.len()) };
    }
}

/// `row = c tanh(row / c)`, in place.
#[inline(always)]
pub(crate) fn cap_row<S: Simd>(s: S, cap: f32, row: &mut [f32]) {
    // SAFETY: each vector is read before it is written.
    unsafe { cap_values(s, cap, row.as_ptr(), row.as_mut_ptr(), row.len()) };
}

/// # Safety
/// Both pointers are valid for `len` numbers; they are equal or do not overlap.
#[inline(always)]
unsafe fn cap_values<S: Simd>(s: S, cap: f32, x: *const f32, y: *mut f32, len: usize) {
    let (c, inverse) = (s.splat(cap), s.splat(1.0 / cap));
    let mut i = 0;
    // SAFETY: whole vectors, then the rest.
    unsafe {
        while i + S::LANES <= len {
            let t = tanh(s, s.mul(s.load(x.add(i)), inverse));
            s.store(y.add(i), s.mul(c, t));
            i += S::LANES;
        }
        let n = len - i;
        let t = tanh(s, s.mul(s.load_n(x.add(i), n), inverse));
        s.store_n(y.add(i), s.mul(c, t), n);
    }
}

/// `dx (+)= dy (1 − (y / c)²)`.
pub(super) fn backward(cap: f32, y: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    threads::run_chunks(dx, CHUNK, |index, dx| {
        let range = index * CHUNK..index * CHUNK + dx.len();
        let (y, dy) = (&y[range.clone()], &dy[range]);
        dispatch(Backward { cap, y, dy, dx, accumulate });
    });
}

struct Backward<'a> {
    cap: f32,
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for ((dx, y), dy) in self.dx.iter_mut().zip(self.y).zip(self.dy) {
            let value = dy * slope(self.cap, *y);
            *dx = if self.accumulate { *dx + value } else { value };
        }
    }
}
