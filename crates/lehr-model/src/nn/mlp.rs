//! The gated MLP of most decoders.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::linear::WeightLayout::OutIn;
use lehr_tensor::{ParamBuilder, Result, Tensor};

use super::Linear;

/// `down(act(gate(x)) ⊙ up(x))`: SwiGLU or GeGLU, by the activation (Shazeer 2020,
/// <https://arxiv.org/abs/2002.05202>).
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// An MLP of width F over width D. Weights start normal: `gate_proj` and `up_proj` with the
    /// first, `down_proj` with the second standard deviation.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(
        p: &mut ParamBuilder<'_>,
        (d, f): (usize, usize),
        bias: bool,
        activation: Activation,
        (std, down_std): (f32, f32),
    ) -> Result<Self> {
        Ok(Self {
            gate_proj: Linear::build(&mut p.at("gate_proj"), OutIn, (d, f), bias, std)?,
            up_proj: Linear::build(&mut p.at("up_proj"), OutIn, (d, f), bias, std)?,
            down_proj: Linear::build(&mut p.at("down_proj"), OutIn, (f, d), bias, down_std)?,
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
