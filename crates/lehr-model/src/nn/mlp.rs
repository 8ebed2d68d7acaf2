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
