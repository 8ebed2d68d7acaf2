//! An affine map of a gated activation: the second half of a gated feed-forward layer.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::Activation;
use super::gated;
use super::linear::backward::Backward;
use super::linear::{self, Affine, Kept};
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `y = (f(gate) · up) Wᵀ + bias` with `self` as the gate, without keeping the product.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self`, `up` | `[.., F]` |
    /// | `W` | `[O, F]` or `[F, O]`, as `map` says |
    /// | `bias` | `[O]` |
    /// | returns | `[.., O]` |
    ///
    /// Saves `gate`, `up` (in bf16 if products are) and `W`. Backward: `dh = dy W` into a
    /// temporary; then one pass writes `dgate = dh · up · f'(gate)` and `dup = dh · f(gate)`, and
    /// puts `h = f(gate) · up` in the place of `dh`, for `dW = dyᵀ h`.
    ///
    /// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn gated_linear(&self, up: &Self, activation: Activation, map: Affine<'_>) -> Result<Self> {
        super::expect_same("gated_linear", self, up)?;
        let size = map.size("gated_linear", self)?;
        let mut y = self.like(self.shape().with_last_dim(size.n_out))?;
        let mut h = self.like(self.shape())?;
        gated::forward(activation, self, up, &mut h)?;
        map.forward(size, &h, &mut y)?;
        drop(h);
        let (kept_gate, kept_up) = (map.round_kept(self)?, map.round_kept(up)?);
        let op = || {
            let (gate, up) = (kept_gate, kept_up);
            GatedLinear { gate, up, kept: map.keep(size), activation }
        };
        Ok(match map.bias {
            Some(bias) => record1(&[self, up, map.weight, bias], y, op),
            None => record1(&[self, up, map.weight], y, op),
        })
    }
}

struct GatedLinear {
    gate: Tensor,
    up: Tensor,
    kept: Kept,
    activation: Activation,
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
        let (gate, up, shape) = (self.gate.to_f32()?, self.up.to_f32()?, self.gate.shape());
        let (gate, up) = (gate.data(), up.data());
        let wants = (grads.wants(0) || grads.wants(1), grads.wants(2));
        let backward = linear::cpu::Backward::new(&self.kept, &dy, wants)?;
        let mut h = Tensor::uninit(shape, DType::F32)?;
        if grads.wants(0) || grads.wants(1) {
            backward.input(h.data_mut(), false)?;
            let mut dgate = Tensor::uninit(shape, DType::F32)?;
            let mut dup = Tensor::uninit(shape, DType::F32)?;
            let outputs = (dgate.data_mut(), dup.data_mut());
            gated::cpu::backward_and_value(self.activation, gate, up, h.data_mut(), outputs);
            grads.add(0, dgate)?;
            grads.add(1, dup)?;
        } else if grads.wants(2) {
            gated::cpu::forward(self.activation, gate, up, h.data_mut());
        }
        backward.params(linear::cpu::Input::Values(h.data()), grads, 2)
    }
}

impl GatedLinear {
    fn backward_cuda(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let (gate, up, backward) = (&self.gate, &self.up, Backward::new(&self.kept, dy)?);
        let mut h = gate.like(gate.shape())?;
        if grads.wants(0) || grads.wants(1) {
            backward.input(&mut h, false)?;
            let (mut dgate, mut dup) = (gate.like(gate.shape())?, gate.like(gate.shape())?);
            gated::cuda::backward_and_value(
                self.activation,
                gate,
                up,
                &mut h,
                &mut dgate,
                &mut dup,
            )?;
            grads.add(0, dgate)?;
            grads.add(1, dup)?;
        } else if grads.wants(2) {
            gated::cuda::forward(self.activation, gate, up, &mut h)?;
        }
        backward.params(&h, grads, 2)
    }
}
