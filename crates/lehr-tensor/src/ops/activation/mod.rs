//! Activation functions, element by element.

pub(crate) mod cpu;
pub(crate) mod cuda;
pub(crate) mod curve;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::autograd::{Gradients, Op, record1};
use crate::{Result, Tensor};

/// Activation function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2` (GPT-2, Gemma). Both forms of GELU: Hendrycks
    /// and Gimpel 2016, <https://arxiv.org/abs/1606.08415>.
    GeluTanh,
    /// `x Φ(x)` with the normal distribution function Φ (BERT, GLM).
    GeluErf,
    /// `x / (1 + e^−x)` (Llama, Qwen, Mistral).
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` (So et al. 2021, <https://arxiv.org/abs/2109.08668>).
    Relu2,
}

/// Runs an expression with the type alias `$curve` standing for the curve of an activation, so
/// that loops over vectors are compiled once per activation.
macro_rules! with_curve {
    ($activation:expr, $curve:ident => $body:expr) => {{
        use $crate::ops::activation::{Activation, curve};
        match $activation {
            Activation::GeluTanh => {
                type $curve = curve::GeluTanh;
                $body
            }
            Activation::GeluErf => {
                type $curve = curve::GeluErf;
                $body
            }
            Activation::Silu => {
                type $curve = curve::Silu;
                $body
            }
            Activation::Relu => {
                type $curve = curve::Relu;
                $body
            }
            Activation::Relu2 => {
                type $curve = curve::Relu2;
                $body
            }
        }
    }};
}
pub(crate) use with_curve;

impl Tensor {
    /// `y = f(x)` for each element. Saves `x`; `dx = dy · f'(x)`.
    ///
    /// # Errors
    /// If the elements are not f32 or memory runs out.
    pub fn activation(&self, activation: Activation) -> Result<Self> {
        self.expect_float("activation")?;
        let mut y = self.like(self.shape())?;
        forward(activation, self, &mut y)?;
        Ok(record1(&[self], y, || Activate { x: self.detach(), activation }))
    }
}

/// `y = f(x)`, on the device of `x`.
pub(super) fn forward(activation: Activation, x: &Tensor, y: &mut Tensor) -> Result<()> {
    if x.is_cuda() {
        return cuda::forward(activation, x, y);
    }
    cpu::forward(activation, x.data(), y.data_mut());
    Ok(())
}

struct Activate {
    x: Tensor,
    activation: Activation,
}

impl Op for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if dy.is_cuda() {
            return grads.write_like(0, &self.x, |dx, accumulate| {
                cuda::backward(self.activation, &self.x, &dy, dx, accumulate)
            });
        }
        grads.write(0, self.x.shape(), |dx, accumulate| {
            cpu::backward(self.activation, self.x.data(), dy.data(), dx, accumulate);
            Ok(())
        })
    }
}
