//! Rows added behind a gate that depends on the token.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::weighted_sum::expect_one;
use crate::autograd::{Gradients, Op, record1, will_record};
use crate::{DType, Error, Result, Tensor};

/// The gate of [`Tensor::add_gated`]: `factor · scale · σ(logits)`.
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// One number per row.
    pub logits: &'a Tensor,
    /// A learned factor, f32 `[1]`; 1 if there is none.
    pub scale: Option<&'a Tensor>,
    /// A constant factor.
    pub factor: f32,
}

impl Tensor {
    /// `y[r, :] = x[r, :] + factor · scale · σ(logits[r]) · other[r, :]`; `self` is `x`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self`, `other` | `[.., E]` |
    /// | `gate.logits` | any shape with one number per row |
    /// | `gate.scale` | `[1]`, f32 |
    /// | returns | `[.., E]` |
    ///
    /// Saves `other`, `logits` and `scale`. With `g = factor · scale · σ(l)` per row: `dx = dy`,
    /// `dother = g dy`, `dl = g (1 − σ(l)) Σ dy other`, `dscale = factor Σ σ(l) Σ dy other`.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn add_gated(&self, other: &Self, gate: Gate<'_>) -> Result<Self> {
        const OP: &str = "add_gated";
        super::expect_same(OP, self, other)?;
        super::expect_rank_min(OP, self, 1)?;
        let Gate { logits, scale, factor } = gate;
        self.expect_beside(OP, logits)?;
        if logits.shape().n_elements() != self.shape().n_rows() {
            let rule = "a gate must have one number per row";
            return Err(Error::Shape { op: OP, lhs: self.shape(), rhs: logits.shape(), rule });
        }
        let scale = scale.map(Self::to_f32).transpose()?;
        if let Some(scale) = &scale {
            expect_one(OP, self, scale)?;
        }
        let gate = Gate { logits, scale: scale.as_ref(), factor };
        let mut y = self.like(self.shape())?;
        match self.is_cuda() {
            true => cuda::forward(self, other, gate, &mut y)?,
            false => cpu::forward(self.data(), other.data(), gate, y.data_mut()),
        }
        let all = [self, other, logits, scale.as_ref().unwrap_or(self)];
        let inputs = if scale.is_some() { &all[..] } else { &all[..3] };
        if !will_record(inputs) {
            return Ok(y);
        }
        let (other, logits) = (other.detach(), logits.detach());
        let op = AddGated { other, logits, scale: scale.as_ref().map(Self::detach), factor };
        Ok(record1(inputs, y, || op))
    }
}

struct AddGated {
    other: Tensor,
    logits: Tensor,
    scale: Option<Tensor>,
    factor: f32,
}

impl AddGated {
    fn gate(&self) -> Gate<'_> {
        Gate { logits: &self.logits, scale: self.scale.as_ref(), factor: self.factor }
    }
}

impl Op for AddGated {
    fn name(&self) -> &'static str {
        "add_gated"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, dy.clone())?;
        let (other, gate) = (&self.other, self.gate());
        grads.write_like(1, other, |d_other, accumulate| match dy.is_cuda() {
            true => cuda::backward_other(&dy, gate, d_other, accumulate),
            false => {
                cpu::backward_other(dy.data(), gate, d_other.data_mut(), accumulate);
                Ok(())
            }
        })?;
        let wants_scale = grads.n_inputs() > 3 && grads.wants(3);
        if !grads.wants(2) && !wants_scale {
            return Ok(());
        }
        if dy.is_cuda() {
            let (d_logits, partials) = cuda::backward_gate(&dy, other, gate, wants_scale)?;
            grads.add(2, d_logits)?;
            let (Some(partials), Some(scale)) = (partials, gate.scale) else { return Ok(()) };
            return grads.write_param(3, scale, |d_scale, accumulate| {
                super::weighted_sum::cuda::finish(&dy, &partials, self.factor, d_scale, accumulate)
            });
        }
        let mut d_logits = Tensor::uninit(self.logits.shape(), DType::F32)?;
        let sum = cpu::backward_gate(dy.data(), other.data(), gate, d_logits.data_mut());
        grads.add(2, d_logits)?;
        let (true, Some(scale)) = (wants_scale, gate.scale) else { return Ok(()) };
        grads.write_param(3, scale, |d_scale, accumulate| {
            let (sum, d_scale) =
                ((f64::from(self.factor) * sum) as f32, &mut d_scale.data_mut()[0]);
            *d_scale = if accumulate { *d_scale + sum } else { sum };
            Ok(())
        })
    }
}
