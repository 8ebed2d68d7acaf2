//! Root-mean-square normalisation.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{Result, Tensor};

impl Tensor {
    /// Divides each row by its root mean square, then scales: `y = x · rstd · (weight + offset)`
    /// with `rstd = 1 / √(mean(x²) + eps)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., D]` |
    /// | `weight` | `[D]` |
    /// | `offset` | 0, or 1 for models that store the scale less one (Gemma) |
    /// | returns | `[.., D]` |
    ///
    /// Saves `x`, `weight` and one `rstd` per row.
    ///
    /// Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>.
    ///
    /// # Errors
    /// If `weight` is not `[D]` or memory runs out.
    pub fn rms_norm(&self, weight: &Self, eps: f32, offset: f32) -> Result<Self> {
        self.expect_float("rms_norm")?;
        let weight = &weight.to_f32()?;
        super::expect_vector("rms_norm", self, weight)?;
        let mut y = self.like(self.shape())?;
        let mut rstd = self.like_f32([self.shape().n_rows()])?;
        if self.is_cuda() {
            cuda::forward(self, weight, cuda::Scaling { eps, offset }, &mut y, &mut rstd)?;
        } else {
            let (x, w) = (self.data(), weight.data());
            cpu::forward(x, w, eps, offset, y.data_mut(), rstd.data_mut());
        }
        if !will_record(&[self, weight]) {
            return Ok(y);
        }
        let op = || RmsNorm { x: self.detach(), weight: weight.detach(), rstd, offset };
        Ok(record1(&[self, weight], y, op))
    }
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: f32,
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            let Self { x, weight, rstd, offset } = self;
            return cuda::Saved { x, weight, rstd, offset: *offset }.backward(&dy, grads);
        }
        let (x, weight, rstd) = (self.x.data(), self.weight.data(), self.rstd.data());
        grads.write(0, self.x.shape(), |dx, accumulate| {
            cpu::backward_input(x, weight, self.offset, rstd, dy.data(), dx, accumulate);
            Ok(())
        })?;
        grads.write(1, self.weight.shape(), |dw, accumulate| {
            cpu::backward_weight(x, rstd, dy.data(), dw, accumulate);
            Ok(())
        })
    }
}
