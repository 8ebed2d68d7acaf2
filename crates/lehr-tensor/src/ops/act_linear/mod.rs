//! An affine map of an activation: the second half of a plain feed-forward layer.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::{self, Activation};
use super::linear::{self, WeightLayout};
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `y = f(x) Wᵀ + bias`, without keeping `f(x)`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `self` | `[.., F]` |
    /// | `weight` | `[O, F]`, or `[F, O]` with [`WeightLayout::InOut`] |
    /// | `bias` | `[O]` |
    /// | returns | `[.., O]` |
    ///
    /// Saves `x` and `weight`. Backward: `dh = dy W` into a temporary; then one pass writes
    /// `dx = dh · f'(x)` and puts `f(x)` in the place of `dh`, for `dW = dyᵀ f(x)`.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn act_linear(
        &self,
        activation: Activation,
        weight: &Self,
        layout: WeightLayout,
        bias: Option<&Self>,
    ) -> Result<Self> {
        let (n_out, n_in) = linear::check("act_linear", self, weight, layout, bias)?;
        let size = (self.shape().n_rows(), n_out, n_in);
        let mut y = self.like(self.shape().with_last_dim(n_out))?;
        let mut h = self.like(self.shape())?;
        activation::forward(activation, self, &mut h)?;
        linear::forward(size, &h, weight, layout, bias, &mut y)?;
        drop(h);
        let op = || {
            let (x, weight) = (self.detach(), weight.detach());
            ActLinear { x, weight, activation, layout, size }
        };
        Ok(match bias {
            Some(bias) => record1(&[self, weight, bias], y, op),
            None => record1(&[self, weight], y, op),
        })
    }
}

struct ActLinear {
    x: Tensor,
    weight: Tensor,
    activation: Activation,
    layout: WeightLayout,
    /// Rows, outputs, inputs.
    size: (usize, usize, usize),
}

impl Op for ActLinear {
    fn name(&self) -> &'static str {
        "act_linear"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return self.backward_cuda(&dy, grads);
        }
        let x = self.x.data();
        let mut h = Tensor::uninit(self.x.shape(), DType::F32)?;
        if grads.wants(0) {
            let (weight, layout) = (self.weight.data(), self.layout);
            let mut dx = Tensor::uninit(self.x.shape(), DType::F32)?;
            linear::cpu::backward_input(self.size, dy.data(), weight, layout, h.data_mut(), false)?;
            let dx_values = dx.data_mut();
            activation::cpu::backward_and_value(self.activation, x, h.data_mut(), dx_values);
            grads.add(0, dx)?;
        } else if grads.wants(1) {
            activation::cpu::forward(self.activation, x, h.data_mut());
        }
        linear::cpu::backward_params(self.size, &dy, h.data(), &self.weight, self.layout, grads, 1)
    }
}

impl ActLinear {
    fn backward_cuda(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let (weight, layout) = (&self.weight, self.layout);
        let mut h = self.x.like(self.x.shape())?;
        if grads.wants(0) {
            let mut dx = self.x.like(self.x.shape())?;
            linear::cuda::backward_input(self.size, dy, weight, layout, &mut h, false)?;
            activation::cuda::backward_and_value(self.activation, &self.x, &mut h, &mut dx)?;
            grads.add(0, dx)?;
        } else if grads.wants(1) {
            activation::cuda::forward(self.activation, &self.x, &mut h)?;
        }
        linear::cuda::backward_params(self.size, dy, &h, weight, layout, grads, 1)
    }
}
