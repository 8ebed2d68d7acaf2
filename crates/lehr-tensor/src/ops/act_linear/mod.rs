//! An affine map of an activation: the second half of a plain feed-forward layer.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::{self, Activation};
use super::linear::backward::Backward;
use super::linear::{self, Affine, Kept};
use crate::autograd::{Gradients, Op, record1};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// `y = f(x) Wᵀ + bias`, without keeping `f(x)`, of `x` `[.., F]` to `[.., O]`.
    ///
    /// Saves `x` (in bf16 if products are) and `W`. Backward: `dh = dy W` into a temporary; then
    /// one pass writes `dx = dh · f'(x)` and puts `f(x)` in the place of `dh`, for `dW = dyᵀ f(x)`.
    /// On a GPU with 16-bit elements and the GELU by tanh the product writes `dx` itself, and the
    /// pass only `f(x)`: 4 instead of 5 times the bytes of `x` are moved (`x` and `dx` by the
    /// product, `x` and `f(x)` by the pass, instead of `dh` by the product and four tensors by the
    /// pass).
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn act_linear(&self, activation: Activation, map: Affine<'_>) -> Result<Self> {
        map.size("act_linear", self)?;
        let mut h = self.like(self.shape())?;
        activation::forward(activation, self, &mut h)?;
        self.act_linear_of(h, activation, map)
    }

    /// [`Tensor::act_linear`] with `h = f(x)` already computed.
    pub(super) fn act_linear_of(
        &self,
        h: Self,
        activation: Activation,
        map: Affine<'_>,
    ) -> Result<Self> {
        let size = map.size("act_linear", self)?;
        let mut y = self.like(self.shape().with_last_dim(size.n_out))?;
        map.forward(size, &h, &mut y)?;
        drop(h);
        let x = map.round_kept(self)?;
        let op = || ActLinear { x, kept: map.keep(size), activation };
        Ok(match map.bias {
            Some(bias) => record1(&[self, map.weight, bias], y, op),
            None => record1(&[self, map.weight], y, op),
        })
    }
}

struct ActLinear {
    x: Tensor,
    kept: Kept,
    activation: Activation,
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
        let x = self.x.to_f32()?;
        let x = x.data();
        let wants = (grads.wants(0), grads.wants(1));
        let backward = linear::cpu::Backward::new(&self.kept, &dy, wants)?;
        let mut h = Tensor::uninit(self.x.shape(), DType::F32)?;
        if grads.wants(0) {
            let mut dx = Tensor::uninit(self.x.shape(), DType::F32)?;
            backward.input(h.data_mut(), false)?;
            let dx_values = dx.data_mut();
            activation::cpu::backward_and_value(self.activation, x, h.data_mut(), dx_values);
            grads.add(0, dx)?;
        } else if grads.wants(1) {
            activation::cpu::forward(self.activation, x, h.data_mut());
        }
        backward.params(linear::cpu::Input::Values(h.data()), grads, 1)
    }
}

impl ActLinear {
    fn backward_cuda(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let (x, backward) = (&self.x, Backward::new(&self.kept, dy)?);
        let is_done = self.backward_by_product(&backward, grads)?;
        let mut h = x.like(x.shape())?;
        if grads.wants(0) && !is_done {
            let mut dx = x.like(x.shape())?;
            backward.input(&mut h, false)?;
            activation::cuda::backward_and_value(self.activation, x, &mut h, &mut dx)?;
            grads.add(0, dx)?;
        } else if grads.wants(1) {
            activation::cuda::forward(self.activation, x, &mut h)?;
        }
        backward.params(&h, grads, 1)
    }

    /// The gradient of `x`, if it is wanted and one product writes it.
    fn backward_by_product(
        &self,
        backward: &Backward<'_>,
        grads: &mut Gradients<'_>,
    ) -> Result<bool> {
        if !grads.wants(0) || self.activation != Activation::GeluTanh {
            return Ok(false);
        }
        let mut dx = self.x.like(self.x.shape())?;
        let is_done = backward.input_of_gelu(&self.x, &mut dx)?;
        if is_done {
            grads.add(0, dx)?;
        }
        Ok(is_done)
    }
}
