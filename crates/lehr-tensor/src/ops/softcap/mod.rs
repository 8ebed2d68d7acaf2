//! A smooth bound on logits.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// `y = c tanh(x / c)`: the identity near 0, bounded by ±c.
    ///
    /// Saves `y`; `dx = dy (1 − (y / c)²)`.
    ///
    /// Gemma 2 (2024), <https://arxiv.org/abs/2408.00118>.
    ///
    /// # Errors
    /// If `cap` is not a positive number, the elements are not f32, or memory runs out.
    pub fn softcap(&self, cap: f32) -> Result<Self> {
        self.expect_float("softcap")?;
        check("softcap", cap)?;
        let mut y = self.like(self.shape())?;
        match self.is_cuda() {
            true => cuda::forward(cap, self, &mut y)?,
            false => cpu::forward(cap, self.data(), y.data_mut()),
        }
        let saved = y.detach();
        Ok(record1(&[self], y, || Softcap { y: saved, cap }))
    }
}

/// Returns an error unless `cap` is a positive number.
pub(crate) fn check(op: &'static str, cap: f32) -> Result<()> {
    if cap > 0.0 && cap.is_finite() {
        return Ok(());
    }
    Err(Error::Argument {
        op,
        name: "softcap",
        value: cap.to_string(),
        expected: "a positive finite number",
    })
}

struct Softcap {
    y: Tensor,
    cap: f32,
}

impl Op for Softcap {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return grads.write_like(0, &self.y, |dx, accumulate| {
                cuda::backward(self.cap, &self.y, &dy, dx, accumulate)
            });
        }
        grads.write(0, self.y.shape(), |dx, accumulate| {
            cpu::backward(self.cap, self.y.data(), dy.data(), dx, accumulate);
            Ok(())
        })
    }
}
