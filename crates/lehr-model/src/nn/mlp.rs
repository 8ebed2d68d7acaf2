//! The gated MLP of most decoders.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::{Result, Role, Tensor};

use super::{LayerBuilder, Linear, LinearShape};

/// `down(act(gate(x)) ⊙ up(x))`: SwiGLU or GeGLU, by the activation (Shazeer 2020,
/// <https://arxiv.org/abs/2002.05202>).
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

/// The form of a gated MLP, and the standard deviations its weights start with.
#[derive(Clone, Copy, Debug)]
pub struct GatedMlpShape {
    /// Width D of what it reads and writes.
    pub width: usize,
    /// Width F between.
    pub inner: usize,
    /// Whether its linear layers have biases.
    pub bias: bool,
    /// What the gate goes through.
    pub activation: Activation,
    /// Standard deviation of `gate_proj` and `up_proj`.
    pub std: f32,
    /// Standard deviation of `down_proj`.
    pub down_std: f32,
}

impl GatedMlp {
    /// An MLP of that form.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(p: &mut LayerBuilder<'_>, shape: GatedMlpShape) -> Result<Self> {
        let GatedMlpShape { width, inner, bias, activation, std, down_std } = shape;
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

    /// `x [.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward_gated(&gate, &up, self.activation)
    }
}

/// [`GatedMlp`] with one matrix for gate and up: `down(act(gate) ⊙ up)` of the two halves of what
/// that matrix gives.
pub struct FusedGatedMlp {
    /// The matrix that gives both halves.
    pub gate_up: Linear,
    /// The matrix behind the product.
    pub down: Linear,
    /// What the gate goes through.
    pub activation: Activation,
    /// Which half is the gate.
    pub gate: GateHalf,
}

/// Which half of a fused projection is the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateHalf {
    /// The first (GLM-4, ChatGLM2).
    First,
    /// The second (GLM-130B).
    Second,
}

impl FusedGatedMlp {
    /// `x [B, T, D]` to `[B, T, D]`.
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
