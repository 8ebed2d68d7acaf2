//! The affine layer, the only place a weight matrix is applied.

use lehr_tensor::ops::linear::{Affine, WeightLayout};
use lehr_tensor::{Init, Param, ParamBuilder, Result, Tensor, Weight};

use lehr_tensor::ops::activation::Activation;

/// `y = x Wᵀ + bias`.
///
/// Architectures know nothing of how the weight is stored or adapted: a weight in few bits is
/// multiplied as it is, and whatever else replaces the dense weight later does so in here.
pub struct Linear {
    weight: Weight,
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
        let transposed = layout == WeightLayout::InOut;
        let weight = p.matrix("weight", shape, transposed, Init::Normal(std))?;
        let bias = match bias {
            true => Some(p.param("bias", [n_out], Init::Constant(0.0))?),
            false => None,
        };
        Ok(Self { weight, layout, bias })
    }

    /// A layer over an existing `[out, in]` matrix: a head tied to the embedding.
    #[must_use]
    pub fn tied(weight: Weight) -> Self {
        Self { weight, layout: WeightLayout::OutIn, bias: None }
    }

    /// The same layer with `bias` `[out]`.
    #[must_use]
    pub fn with_bias(self, bias: Param) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// The bias as a tensor, if there is one.
    #[must_use]
    pub fn bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(Param::tensor)
    }

    /// The weight.
    #[must_use]
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The map with a weight that is a parameter.
    fn map<'a>(&self, weight: &'a Tensor, bias: &'a Option<Tensor>) -> Affine<'a> {
        let fp8 = self.weight.param().is_some_and(Param::is_fp8);
        Affine { weight, layout: self.layout, bias: bias.as_ref(), fp8 }
    }

    /// `x [.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// If the width of `x` does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias();
        match &self.weight {
            Weight::Param(w) => x.affine(self.map(&w.tensor(), &bias)),
            Weight::Stored(w) => x.linear_q(w, bias.as_ref()),
        }
    }

    /// `down(act(up(x)))`, the plain feed-forward layer of GPT-2 and BERT, of which `up(x)` alone
    /// is kept for backward.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn feed_forward(x: &Tensor, up: &Self, act: Activation, down: &Self) -> Result<Tensor> {
        let (up_bias, down_bias) = (up.bias(), down.bias());
        match (&up.weight, &down.weight) {
            (Weight::Param(up_weight), Weight::Param(down_weight)) => {
                let (up_weight, down_weight) = (up_weight.tensor(), down_weight.tensor());
                let (wide, narrow) =
                    (up.map(&up_weight, &up_bias), down.map(&down_weight, &down_bias));
                x.feed_forward(wide, act, narrow)
            }
            (_, Weight::Param(w)) => {
                up.forward(x)?.act_linear(act, down.map(&w.tensor(), &down_bias))
            }
            (_, Weight::Stored(w)) => {
                up.forward(x)?.activation(act)?.linear_q(w, down_bias.as_ref())
            }
        }
    }

    /// `forward(act(gate) ⊙ up)` without keeping the product for backward.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward_gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        let bias = self.bias();
        match &self.weight {
            Weight::Param(w) => gate.gated_linear(up, act, self.map(&w.tensor(), &bias)),
            Weight::Stored(w) => gate.gated(up, act)?.linear_q(w, bias.as_ref()),
        }
    }
}
