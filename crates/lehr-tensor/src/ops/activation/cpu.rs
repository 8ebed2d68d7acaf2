//! One pass over memory for each use of an activation.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use super::curve::Curve;
use super::{Activation, with_curve};

/// `y = f(x)`.
pub(crate) fn forward(activation: Activation, x: &[f32], y: &mut [f32]) {
    threads::run_chunks(y, CHUNK, |index, y| {
        let x = &x[index * CHUNK..][..y.len()];
        dispatch(Forward { activation, x, y });
    });
}

struct Forward<'a> {
    activation: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_curve!(self.activation, C => forward_loop::<S, C>(s, self.x, self.y));
    }
}

#[inline(always)]
fn forward_loop<S: Simd, C: Curve>(s: S, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (x, y, len) = (x.as_ptr(), y.as_mut_ptr(), y.len());
    let mut i = 0;
    // SAFETY: whole vectors, then the rest, all within both slices.
    unsafe {
        while i + S::LANES <= len {
            s.store(y.add(i), C::value(s, s.load(x.add(i))));
            i += S::LANES;
        }
        let n = len - i;
        s.store_n(y.add(i), C::value(s, s.load_n(x.add(i), n)), n);
    }
}

/// `dx (+)= dy f'(x)`.
pub(super) fn backward(
    activation: Activation,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    threads::run_chunks(dx, CHUNK, |index, dx| {
        let range = index * CHUNK..index * CHUNK + dx.len();
        let (x, dy) = (&x[range.clone()], &dy[range]);
        dispatch(Backward { activation, x, dy, dx, accumulate });
    });
}

struct Backward<'a> {
    activation: Activation,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_curve!(self.activation, C => {
            backward_loop::<S, C>(s, self.x, self.dy, self.dx, self.accumulate);
        });
    }
}

#[inline(always)]
fn backward_loop<S: Simd, C: Curve>(s: S, x: &[f32], dy: &[f32], dx: &mut [f32], add: bool) {
    let len = dx.len();
    assert!(x.len() == len && dy.len() == len);
    let (x, dy, dx) = (x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
    let mut i = 0;
    // SAFETY: whole vectors, then the rest, all within the three slices.
    unsafe {
        while i + S::LANES <= len {
            let value = s.mul(s.load(dy.add(i)), C::both(s, s.load(x.add(i))).1);
            s.store(dx.add(i), if add { s.add(value, s.load(dx.add(i))) } else { value });
            i += S::LANES;
        }
        let n = len - i;
        let value = s.mul(s.load_n(dy.add(i), n), C::both(s, s.load_n(x.add(i), n)).1);
        let sum = if add { s.add(value, s.load_n(dx.add(i), n)) } else { value };
        s.store_n(dx.add(i), sum, n);
    }
}

/// In one pass `dx = dh f'(x)`, and `f(x)` in the place of `dh`.
pub(crate) fn backward_and_value(
    activation: Activation,
    x: &[f32],
    dh: &mut [f32],
    dx: &mut [f32],
) {
    let dx = SharedMut::new(dx);
    threads::run_chunks(dh, CHUNK, |index, dh| {
        let (start, len) = (index * CHUNK, dh.len());
        // SAFETY: chunks of different indices do not overlap.
        let dx = unsafe { dx.slice(start, len) };
        dispatch(BackwardAndValue { activation, x: &x[start..start + len], dh, dx });
    });
}

struct BackwardAndValue<'a> {
    activation: Activation,
    x: &'a [f32],
    dh: &'a mut [f32],
    dx: &'a mut [f32],
}

impl Kernel for BackwardAndValue<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_curve!(self.activation, C => {
            both_loop::<S, C>(s, self.x, self.dh, self.dx);
        });
    }
}

#[inline(always)]
fn both_loop<S: Simd, C: Curve>(s: S, x: &[f32], dh: &mut [f32], dx: &mut [f32]) {
    let len = dx.len();
    assert!(x.len() == len && dh.len() == len);
    let (x, dh, dx) = (x.as_ptr(), dh.as_mut_ptr(), dx.as_mut_ptr());
    let mut i = 0;
    // SAFETY: whole vectors, then the rest, all within the three slices.
    unsafe {
        while i + S::LANES <= len {
            let (value, slope) = C::both(s, s.load(x.add(i)));
            s.store(dx.add(i), s.mul(s.load(dh.add(i)), slope));
            s.store(dh.add(i), value);
            i += S::LANES;
        }
        let n = len - i;
        let (value, slope) = C::both(s, s.load_n(x.add(i), n));
        s.store_n(dx.add(i), s.mul(s.load_n(dh.add(i), n), slope), n);
        s.store_n(dh.add(i), value, n);
    }
}
