//! A residual addition and the following normalisation, in one pass over memory.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::layer_norm::{self, Stats, cpu::Affine};
use super::rms_norm;
use crate::autograd::{Gradients, Op, record, will_record};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `sum = self + delta` and `normed =` [`rms_norm`](Tensor::rms_norm)`(sum)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self`, `delta` | `[.., D]` |
    /// | `weight` | `[D]` |
    /// | `offset` | 0, or 1 for models that store the scale less one (Gemma) |
    /// | returns | `(sum, normed)`, both `[.., D]` |
    ///
    /// Saves `sum`, `weight` and one `rstd` per row. `self` and `delta` have one gradient: that of
    /// `sum` plus what comes through the normalisation.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn add_rms_norm(
        &self,
        delta: &Self,
        weight: &Self,
        eps: f32,
        offset: f32,
    ) -> Result<(Self, Self)> {
        const OP: &str = "add_rms_norm";
        let weight = &weight.to_f32()?;
        super::expect_same(OP, self, delta)?;
        super::expect_vector(OP, self, weight)?;
        let mut sum = self.like(self.shape())?;
        let mut normed = self.like(self.shape())?;
        let mut rstd = self.like_f32([self.shape().n_rows()])?;
        if self.is_cuda() {
            let out = (&mut sum, &mut normed, &mut rstd);
            let scaling = rms_norm::cuda::Scaling { eps, offset };
            rms_norm::cuda::add_forward((self, delta, weight), scaling, out)?;
        } else {
            let scale = cpu::Scale { weight: weight.data(), eps, offset };
            let out = (sum.data_mut(), normed.data_mut());
            cpu::forward_rms(self.data(), delta.data(), scale, out, rstd.data_mut());
        }
        let inputs = [self, delta, weight];
        if !will_record(&inputs) {
            return Ok((sum, normed));
        }
        let saved = sum.clone();
        let op = || AddRmsNorm { sum: saved, weight: weight.detach(), rstd, offset };
        let [sum, normed] = record(&inputs, [sum, normed], op);
        Ok((sum, normed))
    }

    /// `sum = self + delta` and `normed =` [`layer_norm`](Tensor::layer_norm)`(sum)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self`, `delta` | `[.., D]` |
    /// | `weight`, `bias` | `[D]` |
    /// | returns | `(sum, normed)`, both `[.., D]` |
    ///
    /// Saves `sum`, `weight`, and one `mean` and `rstd` per row. `self` and `delta` have one
    /// gradient: that of `sum` plus what comes through the normalisation.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn add_layer_norm(
        &self,
        delta: &Self,
        weight: &Self,
        bias: Option<&Self>,
        eps: f32,
    ) -> Result<(Self, Self)> {
        const OP: &str = "add_layer_norm";
        let (weight, bias) = (&weight.to_f32()?, bias.map(Self::to_f32).transpose()?);
        let bias = bias.as_ref();
        super::expect_same(OP, self, delta)?;
        super::expect_vector(OP, self, weight)?;
        if let Some(bias) = bias {
            super::expect_vector(OP, self, bias)?;
        }
        let mut sum = self.like(self.shape())?;
        let mut normed = self.like(self.shape())?;
        let mut stats = Stats::uninit(self)?;
        if self.is_cuda() {
            let out = (&mut sum, &mut normed, &mut stats);
            layer_norm::cuda::add_forward((self, delta), (weight, bias), eps, out)?;
        } else {
            let affine = Affine { weight: weight.data(), bias: bias.map(Self::data), eps };
            let out = (sum.data_mut(), normed.data_mut());
            let rows = (stats.mean.data_mut(), stats.rstd.data_mut());
            cpu::forward_layer(self.data(), delta.data(), affine, out, rows);
        }
        let with_bias = [self, delta, weight, bias.unwrap_or(weight)];
        let inputs = if bias.is_some() { &with_bias[..] } else { &with_bias[..3] };
        if !will_record(inputs) {
            return Ok((sum, normed));
        }
        let saved = sum.clone();
        let op = || AddLayerNorm { sum: saved, weight: weight.detach(), stats };
        let [sum, normed] = record(inputs, [sum, normed], op);
        Ok((sum, normed))
    }
}

struct AddRmsNorm {
    sum: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: f32,
}

impl Op for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let (d_sum, d_normed) = (grads.output(0), grads.output(1));
        if self.sum.is_cuda() {
            let Self { sum: x, weight, rstd, offset } = self;
            let saved = rms_norm::cuda::Saved { x, weight, rstd, offset: *offset };
            return share_sum(grads, d_sum, d_normed, |d_sum, dy, grads| {
                saved.backward_sum(d_sum, dy, grads)
            });
        }
        let (sum, weight, rstd) = (self.sum.data(), self.weight.data(), self.rstd.data());
        backward_sum(grads, &self.sum, d_sum, d_normed.as_ref(), |dy, dx, accumulate| {
            let offset = self.offset;
            rms_norm::cpu::backward_input(sum, weight, offset, rstd, dy, dx, accumulate);
        })?;
        let Some(d_normed) = d_normed else { return Ok(()) };
        grads.write(2, self.weight.shape(), |dw, accumulate| {
            rms_norm::cpu::backward_weight(sum, rstd, d_normed.data(), dw, accumulate);
            Ok(())
        })
    }
}

struct AddLayerNorm {
    sum: Tensor,
    weight: Tensor,
    stats: Stats,
}

impl Op for AddLayerNorm {
    fn name(&self) -> &'static str {
        "add_layer_norm"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let (d_sum, d_normed) = (grads.output(0), grads.output(1));
        if self.sum.is_cuda() {
            let Self { sum: x, weight, stats } = self;
            let saved = layer_norm::cuda::Saved { x, weight, stats };
            return share_sum(grads, d_sum, d_normed, |d_sum, dy, grads| {
                saved.backward_sum(d_sum, dy, grads)
            });
        }
        let (sum, weight, rows) = (self.sum.data(), self.weight.data(), self.stats.rows());
        backward_sum(grads, &self.sum, d_sum, d_normed.as_ref(), |dy, dx, accumulate| {
            layer_norm::cpu::backward_input(sum, weight, rows, dy, dx, accumulate);
        })?;
        let Some(d_normed) = d_normed else { return Ok(()) };
        layer_norm::backward_affine(grads, 2, weight.len(), sum, rows, d_normed.data())
    }
}

/// Computes [`backward_sum`] on a GPU: `through(d_sum, d_normed, grads)` returns the gradient of
/// the sum, including the part that comes through the normalisation, in one pass.
fn share_sum(
    grads: &mut Gradients<'_>,
    d_sum: Option<Tensor>,
    d_normed: Option<Tensor>,
    through: impl FnOnce(Option<&Tensor>, &Tensor, &mut Gradients<'_>) -> Result<Option<Tensor>>,
) -> Result<()> {
    let total = match d_normed {
        Some(d_normed) => through(d_sum.as_ref(), &d_normed, grads)?,
        None => d_sum,
    };
    let Some(total) = total else { return Ok(()) };
    grads.add(0, total.clone())?;
    grads.add(1, total)
}

/// Adds the shared gradient to both terms of the sum. `through(dy, dx, accumulate)` is the backward
/// of the normalisation.
fn backward_sum(
    grads: &mut Gradients<'_>,
    sum: &Tensor,
    d_sum: Option<Tensor>,
    d_normed: Option<&Tensor>,
    through: impl Fn(&[f32], &mut [f32], bool),
) -> Result<()> {
    if !grads.wants(0) && !grads.wants(1) {
        return Ok(());
    }
    let accumulate = d_sum.is_some();
    let total = match (d_sum, d_normed) {
        (Some(d_sum), None) => d_sum,
        (None, None) => return Ok(()),
        (d_sum, Some(d_normed)) => {
            let mut total = match d_sum {
                Some(d_sum) if d_sum.is_unique() => d_sum,
                Some(d_sum) => Tensor::from_slice(d_sum.data(), d_sum.shape())?,
                None => Tensor::uninit(sum.shape(), DType::F32)?,
            };
            through(d_normed.data(), total.data_mut(), accumulate);
            total
        }
    };
    grads.add(0, total.clone())?;
    grads.add(1, total)
}
