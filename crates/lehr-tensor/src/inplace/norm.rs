//! The gradient norm and its clipping.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use super::cuda;
use crate::{Result, Tensor};

/// `Σ g²` of a whole gradient, on the device that computed it. The host waits for a GPU only when
/// it reads the number.
pub struct SquaredGradNorm(Sum);

/// A sum, on the device it was computed on.
enum Sum {
    Host(f64),
    /// The bits of an f64, `[2]`.
    Cuda(Tensor),
}

impl SquaredGradNorm {
    /// Sums over all elements of f32 tensors on one device. If one of the `losses` `[1]` is not
    /// finite, neither is the sum.
    ///
    /// # Errors
    /// If a device fails.
    pub fn of(tensors: &[Tensor], losses: &[Tensor]) -> Result<Self> {
        if tensors.first().is_some_and(Tensor::is_cuda) {
            let sum = |sum: Option<Tensor>, loss: &Tensor| match sum {
                Some(sum) => sum.add(loss).map(Some),
                None => Ok(Some(loss.clone())),
            };
            let loss = losses.iter().try_fold(None, sum)?;
            return Ok(Self(Sum::Cuda(cuda::sum_of_squares(tensors, loss.as_ref())?)));
        }
        let mut sum: f64 = tensors.iter().map(|t| sum_of_squares(t.data())).sum();
        for loss in losses {
            sum += 0.0 * f64::from(loss.item()?);
        }
        Ok(Self(Sum::Host(sum)))
    }

    /// Creates the norm from a known sum.
    #[must_use]
    pub fn known(sum: f64) -> Self {
        Self(Sum::Host(sum))
    }

    /// Returns the number. Waits for a GPU.
    ///
    /// # Errors
    /// If a device fails.
    pub fn get(&self) -> Result<f64> {
        match &self.0 {
            Sum::Host(sum) => Ok(*sum),
            Sum::Cuda(bits) => cuda::f64_of(bits),
        }
    }

    /// Returns its tensor, if it is on a GPU.
    pub(super) fn on_cuda(&self) -> Option<&Tensor> {
        match &self.0 {
            Sum::Host(_) => None,
            Sum::Cuda(bits) => Some(bits),
        }
    }
}

/// Gradient clipping: how an update depends on the norm of the whole gradient.
#[derive(Clone, Copy)]
pub struct Clip<'a> {
    /// `Σ g²` of the whole gradient. If it is not finite, nothing is updated.
    pub squared_norm: &'a SquaredGradNorm,
    /// Largest norm after `grad_scale`; a gradient with a larger norm is scaled down to it. 0
    /// disables clipping.
    pub max_norm: f32,
}

impl Clip<'_> {
    /// Returns the factor on the gradient, for its squared norm `sum` and a `grad_scale`. `None`
    /// means that nothing may be updated.
    pub(super) fn scale(&self, sum: f64, grad_scale: f32) -> Option<f32> {
        let (scale, limit) = (f64::from(grad_scale), f64::from(self.max_norm));
        let norm = sum.sqrt() * scale;
        let clips = limit > 0.0 && norm > limit;
        sum.is_finite().then_some(if clips { (scale * (limit / norm)) as f32 } else { grad_scale })
    }
}

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
        let short = |run: &[f32]| f64::from(lehr_kernels::gemm::vector::dot(s, run, run));
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
