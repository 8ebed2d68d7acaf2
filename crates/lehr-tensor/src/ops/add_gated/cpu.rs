//! Row by row.

use lehr_kernels::gemm::vector::dot;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use super::Gate;
use crate::ops::rows_per_task;

/// `σ(x)` in f32, exact to a few units in the last place.
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The constant part of a gate.
fn factor(gate: Gate<'_>) -> f32 {
    gate.scale.map_or(gate.factor, |scale| gate.factor * scale.data()[0])
}

/// Width of the rows of `x`.
fn width(x: &[f32], gate: Gate<'_>) -> usize {
    x.len() / gate.logits.data().len().max(1)
}

/// `y = x + g other`.
pub(super) fn forward(x: &[f32], other: &[f32], gate: Gate<'_>, y: &mut [f32]) {
    let (d, factor, logits) = (width(x, gate), factor(gate), gate.logits.data());
    if d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    threads::run_chunks(y, rows * d, |index, y| {
        let range = index * rows * d..index * rows * d + y.len();
        let (x, other, logits) = (&x[range.clone()], &other[range], &logits[index * rows..]);
        dispatch(Forward { x, other, logits, factor, d, y });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    other: &'a [f32],
    logits: &'a [f32],
    factor: f32,
    d: usize,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.x.chunks_exact(self.d).zip(self.other.chunks_exact(self.d));
        for (((x, other), y), logit) in rows.zip(self.y.chunks_exact_mut(self.d)).zip(self.logits) {
            let gate = self.factor * sigmoid(*logit);
            for ((y, x), other) in y.iter_mut().zip(x).zip(other) {
                *y = x + gate * other;
            }
        }
    }
}

/// `dother (+)= g dy`.
pub(super) fn backward_other(dy: &[f32], gate: Gate<'_>, d_other: &mut [f32], accumulate: bool) {
    let (d, factor, logits) = (width(dy, gate), factor(gate), gate.logits.data());
    if d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    threads::run_chunks(d_other, rows * d, |index, d_other| {
        let dy = &dy[index * rows * d..][..d_other.len()];
        let logits = &logits[index * rows..];
        dispatch(BackwardOther { dy, logits, factor, d, d_other, accumulate });
    });
}

struct BackwardOther<'a> {
    dy: &'a [f32],
    logits: &'a [f32],
    factor: f32,
    d: usize,
    d_other: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for BackwardOther<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.dy.chunks_exact(self.d).zip(self.d_other.chunks_exact_mut(self.d));
        for ((dy, d_other), logit) in rows.zip(self.logits) {
            let gate = self.factor * sigmoid(*logit);
            let both = d_other.iter_mut().zip(dy);
            match self.accumulate {
                true => both.for_each(|(d_other, dy)| *d_other += gate * dy),
                false => both.for_each(|(d_other, dy)| *d_other = gate * dy),
            }
        }
    }
}

/// `dl = g (1 − σ(l)) Σ dy other` per row; returns `Σ σ(l) Σ dy other` over all rows.
pub(super) fn backward_gate(
    dy: &[f32],
    other: &[f32],
    gate: Gate<'_>,
    d_logits: &mut [f32],
) -> f64 {
    let (d, factor, logits) = (width(dy, gate), factor(gate), gate.logits.data());
    if d == 0 {
        d_logits.fill(0.0);
        return 0.0;
    }
    let rows = rows_per_task(d);
    let mut sums = vec![0.0f64; logits.len().div_ceil(rows)];
    let sums_of = SharedMut::new(&mut sums);
    threads::run_chunks(d_logits, rows, |index, d_logits| {
        let range = index * rows * d..(index * rows + d_logits.len()) * d;
        let (dy, other, logits) = (&dy[range.clone()], &other[range], &logits[index * rows..]);
        let sum = dispatch(BackwardGate { dy, other, logits, factor, d, d_logits });
        // SAFETY: each task writes the sum of its own index.
        let out = unsafe { sums_of.slice(index, 1) };
        out[0] = sum;
    });
    sums.iter().sum()
}

struct BackwardGate<'a> {
    dy: &'a [f32],
    other: &'a [f32],
    logits: &'a [f32],
    factor: f32,
    d: usize,
    d_logits: &'a mut [f32],
}

impl Kernel for BackwardGate<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0;
        let rows = self.dy.chunks_exact(self.d).zip(self.other.chunks_exact(self.d));
        for (((dy, other), logit), d_logit) in rows.zip(self.logits).zip(self.d_logits) {
            let (open, product) = (sigmoid(*logit), dot(s, dy, other));
            *d_logit = self.factor * open * (1.0 - open) * product;
            total += f64::from(open * product);
        }
        total
    }
}
