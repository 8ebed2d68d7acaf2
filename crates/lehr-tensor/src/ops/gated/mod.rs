//! Gated activations: one half of the features scales the other.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::Activation;
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `y = f(gate) · up`, element by element; `self` is the gate.
    ///
    /// Saves `gate` and `up`; `dgate = dy · up · f'(gate)`, `dup = dy · f(gate)`.
    ///
    /// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
    ///
    /// # Errors
    /// If the shapes differ or memory runs out.
    pub fn gated(&self, up: &Self, activation: Activation) -> Result<Self> {
        super::expect_same("gated", self, up)?;
        let mut y = self.like(self.shape())?;
        forward(activation, self, up, &mut y)?;
        let op = || Gated { gate: self.detach(), up: up.detach(), activation };
        Ok(record1(&[self, up], y, op))
    }
}

/// `y = f(gate) · up`, on the device of `gate`.
pub(super) fn forward(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    if gate.is_cuda() {
        return cuda::forward(activation, gate, up, y);
    }
    cpu::forward(activation, gate.data(), up.data(), y.data_mut());
    Ok(())
}

struct Gated {
    gate: Tensor,
    up: Tensor,
    activation: Activation,
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            let (mut dgate, mut dup) =
                (self.gate.like(self.gate.shape())?, self.up.like(self.up.shape())?);
            cuda::backward(self.activation, &self.gate, &self.up, &dy, &mut dgate, &mut dup)?;
            grads.add(0, dgate)?;
            return grads.add(1, dup);
        }
        let (gate, up) = (self.gate.data(), self.up.data());
        let mut dgate = Tensor::uninit(self.gate.shape(), DType::F32)?;
        let mut dup = Tensor::uninit(self.gate.shape(), DType::F32)?;
        let outputs = (dgate.data_mut(), dup.data_mut());
        cpu::backward(self.activation, gate, up, dy.data(), outputs);
        grads.add(0, dgate)?;
        grads.add(1, dup)
    }
}
