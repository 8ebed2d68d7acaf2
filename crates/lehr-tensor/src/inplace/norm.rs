//! The gradient norm and its clipping.

use super::CHUNK;
use crate::cpu::simd::{Kernel, Simd, dispatch};
use crate::cpu::threads;

/// `Σ x²` in f64 over chunks of fixed size, so that the number of threads changes no bit.
#[must_use]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let mut partial = vec![0.0f64; x.len().div_ceil(CHUNK)];
    threads::run_chunks(&mut partial, 1, |index, out| {
        out[0] = dispatch(Squares(&x[index * CHUNK..x.len().min((index + 1) * CHUNK)]));
    });
    partial.iter().sum()
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // Short f32 runs summed in f64: no digit that matters is lost.
        let short = |run: &[f32]| f64::from(crate::cpu::gemm::vector::dot(s, run, run));
        self.0.chunks(1024).map(short).sum()
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    threads::run_chunks(x, CHUNK, |_, x| dispatch(Scale(x, factor)));
}

struct Scale<'a>(&'a mut [f32], f32);

impl Kernel for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.0 {
            *x *= self.1;
        }
    }
}
