//! One pass over memory for each use of a gate.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::activation::{Activation, curve::Curve, with_curve};

/// `h = f(gate) up`.
pub(crate) fn forward(activation: Activation, gate: &[f32], up: &[f32], h: &mut [f32]) {
    threads::run_chunks(h, CHUNK, |index, h| {
        let range = index * CHUNK..index * CHUNK + h.len();
        let (gate, up) = (&gate[range.clone()], &up[range]);
        dispatch(Forward { activation, gate, up, h });
    });
}

struct Forward<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    h: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_curve!(self.activation, C => forward_loop::<S, C>(s, self.gate, self.up, self.h));
    }
}

#[inline(always)]
fn forward_loop<S: Simd, C: Curve>(s: S, gate: &[f32], up: &[f32], h: &mut [f32]) {
    let len = h.len();
    assert!(gate.len() == len && up.len() == len);
    let (gate, up, h) = (gate.as_ptr(), up.as_ptr(), h.as_mut_ptr());
    let mut i = 0;
    // SAFETY: whole vectors, then the rest, all within the three slices.
    unsafe {
        while i + S::LANES <= len {
            s.store(h.add(i), s.mul(C::value(s, s.load(gate.add(i))), s.load(up.add(i))));
            i += S::LANES;
        }
        let n = len - i;
        let value = C::value(s, s.load_n(gate.add(i), n));
        s.store_n(h.add(i), s.mul(value, s.load_n(up.add(i), n)), n);
    }
}

/// `dgate = dh up f'(gate)` and `dup = dh f(gate)`, into the two `outputs`.
pub(crate) fn backward(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dh: &[f32],
    (dgate, dup): (&mut [f32], &mut [f32]),
) {
    let dup = SharedMut::new(dup);
    threads::run_chunks(dgate, CHUNK, |index, dgate| {
        let (start, len) = (index * CHUNK, dgate.len());
        let (gate, up) = (&gate[start..start + len], &up[start..start + len]);
        let dh = Upstream::Keep(&dh[start..start + len]);
        // SAFETY: chunks of different indices do not overlap.
        let dup = unsafe { dup.slice(start, len) };
        dispatch(Backward { activation, gate, up, dh, dgate, dup });
    });
}

/// [`backward`], and in the same pass `f(gate) up` in the place of `dh`.
pub(crate) fn backward_and_value(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dh: &mut [f32],
    (dgate, dup): (&mut [f32], &mut [f32]),
) {
    let (dgate, dup) = (SharedMut::new(dgate), SharedMut::new(dup));
    threads::run_chunks(dh, CHUNK, |index, dh| {
        let (start, len) = (index * CHUNK, dh.len());
        let (gate, up) = (&gate[start..start + len], &up[start..start + len]);
        let dh = Upstream::Replace(dh);
        // SAFETY: chunks of different indices do not overlap.
        let (dgate, dup) = unsafe { (dgate.slice(start, len), dup.slice(start, len)) };
        dispatch(Backward { activation, gate, up, dh, dgate, dup });
    });
}

/// The gradient of the product: left as it is, or replaced by the product.
enum Upstream<'a> {
    Keep(&'a [f32]),
    Replace(&'a mut [f32]),
}

struct Backward<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    dh: Upstream<'a>,
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_curve!(self.activation, C => self.run_curve::<S, C>(s));
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn run_curve<S: Simd, C: Curve>(self, s: S) {
        let len = self.dgate.len();
        let (dh, h) = match self.dh {
            Upstream::Keep(dh) => (dh.as_ptr(), None),
            Upstream::Replace(dh) => {
                let h = dh.as_mut_ptr();
                (h.cast_const(), Some(h))
            }
        };
        let whole = len - len % S::LANES;
        let (gate, up) = (self.gate.as_ptr(), self.up.as_ptr());
        let (dgate, dup) = (self.dgate.as_mut_ptr(), self.dup.as_mut_ptr());
        // SAFETY: all slices have one length, cut so where the kernel is built; whole vectors,
        // then the rest.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let out = (dgate.add(i), dup.add(i), h.map(|h| h.add(i)));
                backward_step::<S, C>(s, (gate.add(i), up.add(i), dh.add(i)), out, S::LANES);
            }
            let out = (dgate.add(whole), dup.add(whole), h.map(|h| h.add(whole)));
            let inputs = (gate.add(whole), up.add(whole), dh.add(whole));
            backward_step::<S, C>(s, inputs, out, len - whole);
        }
    }
}

/// One vector of `n` numbers.
///
/// # Safety
/// The pointers are valid for `n` numbers.
#[inline(always)]
unsafe fn backward_step<S: Simd, C: Curve>(
    s: S,
    (gate, up, dh): (*const f32, *const f32, *const f32),
    (dgate, dup, h): (*mut f32, *mut f32, Option<*mut f32>),
    n: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let (value, slope) = C::both(s, s.load_n(gate, n));
        let (up, dh) = (s.load_n(up, n), s.load_n(dh, n));
        s.store_n(dgate, s.mul(s.mul(dh, up), slope), n);
        s.store_n(dup, s.mul(dh, value), n);
        if let Some(h) = h {
            s.store_n(h, s.mul(value, up), n);
        }
    }
}
