//! Row-wise forward kernels: a row is added, measured and scaled while it is in the first cache.

use lehr_kernels::gemm::vector::dot;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use crate::ops::layer_norm::cpu::{Affine, normalise};
use crate::ops::rows_per_task;

/// Scale of the rows, and the `eps` that keeps their root mean square above 0.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) offset: f32,
}

pub(super) fn forward_rms(
    x: &[f32],
    delta: &[f32],
    scale: Scale<'_>,
    (sum, normed): (&mut [f32], &mut [f32]),
    rstd: &mut [f32],
) {
    let d = scale.weight.len();
    let rows = rows_per_task(d);
    let (normed, rstd) = (SharedMut::new(normed), SharedMut::new(rstd));
    threads::run_chunks(sum, rows * d, |index, sum| {
        let start = index * rows;
        // SAFETY: tasks own disjoint rows.
        let (normed, rstd) =
            unsafe { (normed.slice(start * d, sum.len()), rstd.slice(start, sum.len() / d)) };
        let (x, delta) = (&x[start * d..], &delta[start * d..]);
        dispatch(ForwardRms { x, delta, scale, sum, normed, rstd });
    });
}

struct ForwardRms<'a> {
    x: &'a [f32],
    delta: &'a [f32],
    scale: Scale<'a>,
    sum: &'a mut [f32],
    normed: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for ForwardRms<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scale { weight, eps, offset } = self.scale;
        let d = weight.len();
        for (r, sum) in self.sum.chunks_exact_mut(d).enumerate() {
            let at = r * d..(r + 1) * d;
            add(&self.x[at.clone()], &self.delta[at.clone()], sum);
            let rstd = 1.0 / (dot(s, sum, sum) / d as f32 + eps).sqrt();
            self.rstd[r] = rstd;
            for ((y, x), w) in self.normed[at].iter_mut().zip(&*sum).zip(weight) {
                *y = x * rstd * (w + offset);
            }
        }
    }
}

pub(super) fn forward_layer(
    x: &[f32],
    delta: &[f32],
    affine: Affine<'_>,
    (sum, normed): (&mut [f32], &mut [f32]),
    (mean, rstd): (&mut [f32], &mut [f32]),
) {
    let d = affine.weight.len();
    let rows = rows_per_task(d);
    let normed = SharedMut::new(normed);
    let (mean, rstd) = (SharedMut::new(mean), SharedMut::new(rstd));
    threads::run_chunks(sum, rows * d, |index, sum| {
        let (start, n) = (index * rows, sum.len() / d);
        // SAFETY: tasks own disjoint rows.
        let (normed, mean, rstd) = unsafe {
            (normed.slice(start * d, sum.len()), mean.slice(start, n), rstd.slice(start, n))
        };
        let (x, delta) = (&x[start * d..], &delta[start * d..]);
        dispatch(ForwardLayer { x, delta, affine, sum, normed, mean, rstd });
    });
}

struct ForwardLayer<'a> {
    x: &'a [f32],
    delta: &'a [f32],
    affine: Affine<'a>,
    sum: &'a mut [f32],
    normed: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for ForwardLayer<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.affine.weight.len();
        for (r, sum) in self.sum.chunks_exact_mut(d).enumerate() {
            let at = r * d..(r + 1) * d;
            add(&self.x[at.clone()], &self.delta[at.clone()], sum);
            let (mean, rstd) = normalise(s, sum, self.affine, &mut self.normed[at]);
            self.mean[r] = mean;
            self.rstd[r] = rstd;
        }
    }
}

/// `sum = a + b`.
#[inline(always)]
fn add(a: &[f32], b: &[f32], sum: &mut [f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum = a + b;
    }
}
