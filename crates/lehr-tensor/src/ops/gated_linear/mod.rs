//! An affine map of a gated activation: the second half of a gated feed-forward layer.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::Activation;
use super::gated;
use super::linear::{self, WeightLayout};
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `y = (f(gate) · up) Wᵀ + bias` with `self` as the gate, without keeping the product.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self`, `up` | `[.., F]` |
    /// | `weight` | `[O, F]`, or `[F, O]` with [`WeightLayout::InOut`] |
    /// | `bias` | `[O]` |
    /// | returns | `[.., O]` |
    ///
    /// Saves `gate`, `up` and `weight`. Backward: `dh = dy W` into a temporary; then one pass
    /// writes `dgate = dh · up · f'(gate)` and `dup = dh · f(gate)`, and puts `h = f(gate) · up`
    /// in the place of `dh`, for `dW = dyᵀ h`.
    ///
    /// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn gated_linear(
        &self,
        up: &Self,
        activation: Activation,
        weight: &Self,
        layout: WeightLayout,
        bias: Option<&Self>,
    ) -> Result<Self> {
        super::expect_same("gated_linear", self, up)?;
        let (n_out, n_in) = linear::check("gated_linear", self, weight, layout, bias)?;
        let size = (self.shape().n_rows(), n_out, n_in);
        let mut y = self.like(self.shape().with_last_dim(n_out))?;
        let mut h = self.like(self.shape())?;
        gated::forward(activation, self, up, &mut h)?;
        linear::forward(size, &h, weight, layout, bias, &mut y)?;
        drop(h);
        let op = || {
            let (gate, up, weight) = (self.detach(), up.detach(), weight.detach());
            GatedLinear { gate, up, weight, activation, layout, size }
        };
        Ok(match bias {
            Some(bias) => record1(&[self, up, weight, bias], y, op),
            None => record1(&[self, up, weight], y, op),
        })
    }
}

struct GatedLinear {
    gate: Tensor,
    up: Tensor,
    weight: Tensor,
    activation: Activation,
    layout: WeightLayout,
    /// Rows, outputs, inputs.
    size: (usize, usize, usize),
}

impl Op for GatedLinear {
    fn name(&self) -> &'static str {
        "gated_linear"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return self.backward_cuda(&dy, grads);
        }
        let (gate, up, shape) = (self.gate.data(), self.up.data(), self.gate.shape());
        let mut h = Tensor::uninit(shape, DType::F32)?;
        if grads.wants(0) || grads.wants(1) {
            let (weight, layout) = (self.weight.data(), self.layout);
            linear::cpu::backward_input(self.size, dy.data(), weight, layout, h.data_mut(), false)?;
            let mut dgate = Tensor::uninit(shape, DType::F32)?;
            let mut dup = Tensor::uninit(shape, DType::F32)?;
            let outputs = (dgate.data_mut(), dup.data_mut());
            gated::cpu::backward_and_value(self.activation, gate, up, h.data_mut(), outputs);
            grads.add(0, dgate)?;
            grads.add(1, dup)?;
        } else if grads.wants(2) {
            gated::cpu::forward(self.activation, gate, up, h.data_mut());
        }
        linear::cpu::backward_params(self.size, &dy, h.data(), &self.weight, self.layout, grads, 2)
    }
}

impl GatedLinear {
    fn backward_cuda(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let (gate, up, weight, layout) = (&self.gate, &self.up, &self.weight, self.layout);
        let mut h = gate.like(gate.shape())?;
        if grads.wants(0) || grads.wants(1) {
            linear::cuda::backward_input(self.size, dy, weight, layout, &mut h, false)?;
            let (mut dgate, mut dup) = (gate.like(gate.shape())?, gate.like(gate.shape())?);
            gated::cuda::backward_and_value(self.activation, gate, up, &mut h, &mut dgate, &mut dup)?;
            grads.add(0, dgate)?;
            grads.add(1, dup)?;
        } else if grads.wants(2) {
            gated::cuda::forward(self.activation, gate, up, &mut h)?;
        }
        linear::cuda::backward_params(self.size, dy, &h, weight, layout, grads, 2)
    }
}
