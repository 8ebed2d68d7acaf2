//! The gated MLP of most decoders.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::{Result, Role, Tensor};

use super::{LayerBuilder, Linear, LinearShape};

/// `down(act(gate(x)) ⊙ up(x))`: SwiGLU or GeGLU, depending on the activation (Shazeer 2020,
/// <https://arxiv.org/abs/2002.05202>).
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

/// The shape of an MLP, gated or not, and the standard deviations of its new weights.
#[derive(Clone, Copy, Debug)]
pub struct MlpShape {
    /// Width D of input and output.
    pub width: usize,
    /// Inner width F.
    pub inner: usize,
    /// Whether its linear layers have biases.
    pub bias: bool,
    /// Its activation function, that of the gate if it has one.
    pub activation: Activation,
    /// Standard deviation of the matrices applied to the input.
    pub std: f32,
    /// Standard deviation of the matrix down.
    pub down_std: f32,
}

impl GatedMlp {
    /// Builds an MLP of that shape.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut LayerBuilder<'_>, shape: MlpShape) -> Result<Self> {
        let MlpShape { width, inner, bias, activation, std, down_std } = shape;
        let mut linear = |name, n_in, n_out, std| {
            let shape = LinearShape::new(n_in, n_out).with_bias(bias);
            Linear::build(&mut p.at(name), Role::Mlp, shape, std)
        };
        Ok(Self {
            gate_proj: linear("gate_proj", width, inner, std)?,
            up_proj: linear("up_proj", width, inner, std)?,
            down_proj: linear("down_proj", inner, width, down_std)?,
            activation,
        })
    }

    /// Applies the MLP: `x [.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward_gated(&gate, &up, self.activation)
    }
}

/// `down(act(up(x)))`: an MLP without a gate.
pub struct PlainMlp {
    /// The matrix applied first.
    pub up: Linear,
    /// The matrix applied to the activations.
    pub down: Linear,
    /// The activation function.
    pub activation: Activation,
}

impl PlainMlp {
    /// Builds an MLP of that shape whose matrices are `names[0]` (up) and `names[1]` (down).
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut LayerBuilder<'_>, names: [&str; 2], shape: MlpShape) -> Result<Self> {
        let MlpShape { width, inner, bias, activation, std, down_std } = shape;
        let mut linear = |name, n_in, n_out, std| {
            let shape = LinearShape::new(n_in, n_out).with_bias(bias);
            Linear::build(&mut p.at(name), Role::Mlp, shape, std)
        };
        let up = linear(names[0], width, inner, std)?;
        Ok(Self { up, down: linear(names[1], inner, width, down_std)?, activation })
    }

    /// Applies the MLP: `x [.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Linear::feed_forward(x, &self.up, self.activation, &self.down)
    }
}

/// A [`GatedMlp`] with one matrix for gate and up. Its output has two halves: `down(act(gate) ⊙
/// up)`.
pub struct FusedGatedMlp {
    /// The matrix that computes both halves.
    pub gate_up: Linear,
    /// The matrix applied to the product.
    pub down: Linear,
    /// Activation of the gate.
    pub activation: Activation,
    /// The half that is the gate.
    pub gate: GateHalf,
}

/// The position of the gate in a fused projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateHalf {
    /// The first half is the gate (GLM-4, ChatGLM2).
    First,
    /// The second half is the gate (GLM-130B).
    Second,
}

impl FusedGatedMlp {
    /// Applies the MLP: `x [B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.gate_up.forward(x)?;
        let f = both.shape()[2] / 2;
        let (first, second) = (both.slice(2, 0..f)?, both.slice(2, f..2 * f)?);
        match self.gate {
            GateHalf::First => self.down.forward_gated(&first, &second, self.activation),
            GateHalf::Second => self.down.forward_gated(&second, &first, self.activation),
        }
    }
}
