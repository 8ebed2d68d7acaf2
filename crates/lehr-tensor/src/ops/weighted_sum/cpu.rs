//! One pass over memory for each sum, and one for each gradient.

use lehr_kernels::CHUNK;
use lehr_kernels::gemm::vector;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use super::{MAX_TERMS, Part};
use crate::Tensor;

/// The factor of a term as one number.
pub(super) fn coefficient(weight: Option<&Tensor>, factor: f32) -> f32 {
    weight.map_or(factor, |weight| factor * weight.data()[0])
}

/// `y = Σ cᵢ xᵢ`.
pub(super) fn forward(parts: &[Part<'_>], y: &mut [f32]) {
    let mut factors = [0.0; MAX_TERMS];
    for (factor, part) in factors.iter_mut().zip(parts) {
        *factor = coefficient(part.weight, part.factor);
    }
    threads::run_chunks(y, CHUNK, |index, y| {
        let mut terms: [&[f32]; MAX_TERMS] = [&[]; MAX_TERMS];
        for (term, part) in terms.iter_mut().zip(parts) {
            *term = &part.x.data()[index * CHUNK..][..y.len()];
        }
        dispatch(Forward { factors, terms, n: parts.len(), y });
    });
}

struct Forward<'a> {
    factors: [f32; MAX_TERMS],
    terms: [&'a [f32]; MAX_TERMS],
    n: usize,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ([a, b, c, d], [x0, x1, x2, x3]) = (self.factors, self.terms);
        let y = self.y;
        match self.n {
            1 => y.iter_mut().zip(x0).for_each(|(y, x0)| *y = a * x0),
            2 => y.iter_mut().zip(x0).zip(x1).for_each(|((y, x0), x1)| *y = a * x0 + b * x1),
            3 => {
                for (((y, x0), x1), x2) in y.iter_mut().zip(x0).zip(x1).zip(x2) {
                    *y = a * x0 + b * x1 + c * x2;
                }
            }
            _ => {
                for ((((y, x0), x1), x2), x3) in y.iter_mut().zip(x0).zip(x1).zip(x2).zip(x3) {
                    *y = a * x0 + b * x1 + c * x2 + d * x3;
                }
            }
        }
    }
}

/// `dx (+)= factor · dy`.
pub(crate) fn backward_term(factor: f32, dy: &[f32], dx: &mut [f32], accumulate: bool) {
    threads::run_chunks(dx, CHUNK, |index, dx| {
        let dy = &dy[index * CHUNK..][..dx.len()];
        dispatch(BackwardTerm { factor, dy, dx, accumulate });
    });
}

struct BackwardTerm<'a> {
    factor: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for BackwardTerm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let factor = self.factor;
        let both = self.dx.iter_mut().zip(self.dy);
        match self.accumulate {
            true => both.for_each(|(dx, dy)| *dx += factor * dy),
            false => both.for_each(|(dx, dy)| *dx = factor * dy),
        }
    }
}

/// `Σ a b`, in f64 over runs of fixed size.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut partial = vec![0.0f64; a.len().div_ceil(CHUNK)];
    threads::run_chunks(&mut partial, 1, |index, out| {
        let range = index * CHUNK..a.len().min((index + 1) * CHUNK);
        out[0] = dispatch(Dot(&a[range.clone()], &b[range]));
    });
    partial.iter().sum()
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Kernel for Dot<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        /// Numbers that are added in f32.
        const RUN: usize = 1024;
        let mut sum = 0.0;
        for (a, b) in self.0.chunks(RUN).zip(self.1.chunks(RUN)) {
            sum += f64::from(vector::dot(s, a, b));
        }
        sum
    }
}
