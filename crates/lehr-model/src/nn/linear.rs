//! The affine layer, the only place a weight matrix is applied.

use lehr_tensor::ops::linear::WeightLayout;
use lehr_tensor::{Init, Param, ParamBuilder, Result, Tensor};

use lehr_tensor::ops::activation::Activation;

/// `y = x Wᵀ + bias`.
///
/// Architectures know nothing of how the weight is stored or adapted: whatever replaces the dense
/// weight later does so in here.
pub struct Linear {
    weight: Param,
    layout: WeightLayout,
    bias: Option<Param>,
}

impl Linear {
    /// A layer from `n_in` to `n_out` numbers; the weight starts normal with `std`, the bias at 0.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(
        p: &mut ParamBuilder<'_>,
        layout: WeightLayout,
        (n_in, n_out): (usize, usize),
        bias: bool,
        std: f32,
    ) -> Result<Self> {
        let shape = match layout {
            WeightLayout::OutIn => [n_out, n_in],
            WeightLayout::InOut => [n_in, n_out],
        };
        let weight = p.param("weight", shape, Init::Normal(std))?;
        let bias = match bias {
            true => Some(p.param("bias", [n_out], Init::Constant(0.0))?),
            false => None,
        };
        Ok(Self { weight, layout, bias })
    }

    /// A layer over an existing `[out, in]` matrix: a head tied to the embedding.
    #[must_use]
    pub fn tied(weight: Param) -> Self {
        Self { weight, layout: WeightLayout::OutIn, bias: None }
    }

    /// The weight as a tensor.
    #[must_use]
    pub fn weight(&self) -> Tensor {
        self.weight.tensor()
    }

    /// `x [.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Param::tensor);
        x.linear(&self.weight.tensor(), self.layout, bias.as_ref())
    }

    /// `forward(act(x))` without keeping `act(x)` for backward.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward_activated(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Param::tensor);
        x.act_linear(act, &self.weight.tensor(), self.layout, bias.as_ref())
    }

    /// `forward(act(gate) ⊙ up)` without keeping the product for backward.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward_gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Param::tensor);
        gate.gated_linear(up, act, &self.weight.tensor(), self.layout, bias.as_ref())
    }
}
