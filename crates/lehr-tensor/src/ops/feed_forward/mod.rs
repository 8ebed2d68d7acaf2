//! A plain feed-forward layer: two affine maps with an activation between them.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use super::activation::Activation;
use super::linear::Affine;
use crate::autograd::will_run_backward;
use crate::{Result, Tensor};

impl Tensor {
    /// `y = f(x W₁ᵀ + bias₁) W₂ᵀ + bias₂`. Only the argument of `f` is kept for backward.
    ///
    /// The shapes and gradients are those of [`Tensor::linear`] followed by [`Tensor::act_linear`].
    /// In training on a GPU, with 16-bit elements and the tanh form of GELU, the first product
    /// writes both the argument and its GELU, which saves a pass over memory. Without gradients the
    /// argument is not kept.
    ///
    /// # Errors
    /// If shapes do not fit or memory runs out.
    pub fn feed_forward(
        &self,
        up: Affine<'_>,
        activation: Activation,
        down: Affine<'_>,
    ) -> Result<Self> {
        let bias = up.bias.unwrap_or(up.weight);
        if will_run_backward(&[self, up.weight, bias, down.weight])
            && activation == Activation::GeluTanh
            && let Some((x, h)) = up.apply_with_gelu(self)?
        {
            return x.act_linear_of(h, activation, down);
        }
        self.affine(up)?.act_linear(activation, down)
    }
}
