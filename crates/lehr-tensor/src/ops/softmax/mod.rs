//! Probabilities from scores.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Result, Tensor};

impl Tensor {
    /// `y = e^x / Σ e^x` along the last dimension.
    ///
    /// Saves `y`; `dx = y (dy − Σ dy y)`.
    ///
    /// # Errors
    /// If the elements are not f32, there is no last dimension, or memory runs out.
    pub fn softmax(&self) -> Result<Self> {
        self.expect_float("softmax")?;
        super::expect_rank_min("softmax", self, 1)?;
        let d = self.shape().last_dim();
        let mut y = self.like(self.shape())?;
        match self.is_cuda() {
            true => cuda::forward(d, self, &mut y)?,
            false => cpu::forward(d, self.data(), y.data_mut()),
        }
        let saved = y.detach();
        Ok(record1(&[self], y, || Softmax { y: saved }))
    }
}

struct Softmax {
    y: Tensor,
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return grads.write_like(0, &self.y, |dx, accumulate| {
                cuda::backward(&self.y, &dy, dx, accumulate)
            });
        }
        let shape = self.y.shape();
        grads.write(0, shape, |dx, accumulate| {
            cpu::backward(shape.last_dim(), self.y.data(), dy.data(), dx, accumulate);
            Ok(())
        })
    }
}
