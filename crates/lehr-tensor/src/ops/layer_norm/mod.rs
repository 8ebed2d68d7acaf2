//! Layer normalisation.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// Shifts each row to mean 0 and scales it to variance 1, then scales and shifts by column:
    /// `y = x̂ · weight + bias` with `x̂ = (x − mean) · rstd` and `rstd = 1 / √(var + eps)`, where
    /// `var` is the mean square of `x − mean`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., D]` |
    /// | `weight` | `[D]` |
    /// | `bias` | `[D]`; none is a bias of 0 |
    /// | returns | `[.., D]` |
    ///
    /// Saves `x`, `weight`, and one `mean` and `rstd` per row. With `g = dy · weight`:
    /// `dx = rstd (g − mean(g) − x̂ · mean(g x̂))`, `dweight = Σ dy · x̂`, `dbias = Σ dy`.
    ///
    /// Ba, Kiros and Hinton 2016, <https://arxiv.org/abs/1607.06450>.
    ///
    /// # Errors
    /// If `weight` or `bias` is not `[D]` or memory runs out.
    pub fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        const OP: &str = "layer_norm";
        self.expect_float(OP)?;
        let weight = &weight.to_f32()?;
        let bias = bias.map(Self::to_f32).transpose()?;
        let bias = bias.as_ref();
        super::expect_vector(OP, self, weight)?;
        if let Some(bias) = bias {
            super::expect_vector(OP, self, bias)?;
        }
        let mut y = self.like(self.shape())?;
        let mut stats = Stats::uninit(self)?;
        if self.is_cuda() {
            cuda::forward(self, (weight, bias), eps, &mut y, &mut stats)?;
        } else {
            let affine = cpu::Affine { weight: weight.data(), bias: bias.map(Self::data), eps };
            let (mean, rstd) = (stats.mean.data_mut(), stats.rstd.data_mut());
            cpu::forward(self.data(), affine, y.data_mut(), mean, rstd);
        }
        let with_bias = [self, weight, bias.unwrap_or(weight)];
        let inputs = if bias.is_some() { &with_bias[..] } else { &with_bias[..2] };
        if !will_record(inputs) {
            return Ok(y);
        }
        let op = || LayerNorm { x: self.detach(), weight: weight.detach(), stats };
        Ok(record1(inputs, y, op))
    }
}

/// Mean and reciprocal deviation of each row.
pub(crate) struct Stats {
    pub(crate) mean: Tensor,
    pub(crate) rstd: Tensor,
}

impl Stats {
    /// Room for the statistics of the rows of `x`.
    pub(crate) fn uninit(x: &Tensor) -> Result<Self> {
        let vector = || x.like_f32([x.shape().n_rows()]);
        Ok(Self { mean: vector()?, rstd: vector()? })
    }

    pub(crate) fn rows(&self) -> cpu::Rows<'_> {
        cpu::Rows { mean: self.mean.data(), rstd: self.rstd.data() }
    }
}

struct LayerNorm {
    x: Tensor,
    weight: Tensor,
    stats: Stats,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            let Self { x, weight, stats } = self;
            return cuda::Saved { x, weight, stats }.backward(&dy, grads);
        }
        let (x, weight, rows) = (self.x.data(), self.weight.data(), self.stats.rows());
        grads.write(0, self.x.shape(), |dx, accumulate| {
            cpu::backward_input(x, weight, rows, dy.data(), dx, accumulate);
            Ok(())
        })?;
        backward_affine(grads, 1, weight.len(), x, rows, dy.data())
    }
}

/// Adds the gradients of a weight (input `first`) and, if it was recorded, of the bias after it:
/// one pass over `x` and `dy` for both.
pub(crate) fn backward_affine(
    grads: &mut Gradients<'_>,
    first: usize,
    width: usize,
    x: &[f32],
    rows: cpu::Rows<'_>,
    dy: &[f32],
) -> Result<()> {
    let wants_bias = grads.n_inputs() > first + 1 && grads.wants(first + 1);
    if !grads.wants(first) && !wants_bias {
        return Ok(());
    }
    let mut dw = Tensor::uninit([width], DType::F32)?;
    let mut db = Tensor::uninit([width], DType::F32)?;
    cpu::backward_columns(x, rows, dy, dw.data_mut(), db.data_mut());
    grads.add(first, dw)?;
    if wants_bias { grads.add(first + 1, db) } else { Ok(()) }
}
