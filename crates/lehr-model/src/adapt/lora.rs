//! Low-rank adaptation: LoRA (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

use lehr_tensor::ops::linear::WeightLayout::OutIn;
use lehr_tensor::{Init, Param, ParamBuilder, Result, Role, Tensor, no_grad};

use serde::{Deserialize, Serialize};

use super::{Adapter, BaseLayer};
use crate::Error;

/// The settings of LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank R of the update, at least 1.
    pub rank: usize,
    /// The scale of the update before it is divided by [`LoraConfig::scaling`].
    pub alpha: f32,
    /// By what the scale is divided.
    pub scaling: LoraScaling,
}

/// By what `alpha` is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraScaling {
    /// The rank.
    #[default]
    Rank,
    /// The root of the rank, with which large ranks learn as fast as small ones: rsLoRA
    /// (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).
    RootOfRank,
}

impl LoraConfig {
    /// Returns the factor of the update.
    #[must_use]
    pub fn scale(self) -> f32 {
        let rank = self.rank as f32;
        match self.scaling {
            LoraScaling::Rank => self.alpha / rank,
            LoraScaling::RootOfRank => self.alpha / rank.sqrt(),
        }
    }

    /// Checks that the settings are valid.
    pub(super) fn validate(self) -> crate::Result<()> {
        if self.rank == 0 {
            return Err(Error::config("the rank of LoRA", 0, "at least 1"));
        }
        if !self.alpha.is_finite() {
            return Err(Error::config("alpha of LoRA", self.alpha, "a finite number"));
        }
        Ok(())
    }
}

/// An update of rank R beside a linear layer: `y = base(x) + s · B (A x)` with the scale `s` of
/// [`LoraConfig::scale`].
///
/// | name | shape | starts |
/// |---|---|---|
/// | `lora_A` | `[R, I]` | uniform in ±1/√I, as PyTorch's linear layers and PEFT |
/// | `lora_B` | `[O, R]` | at 0, so that the model starts as its base |
///
/// Backward computes the gradients of A and B, and `dx`. The base receives no gradient.
pub struct Lora {
    pub(super) a: Param,
    pub(super) b: Param,
    pub(super) scale: f32,
}

impl Lora {
    /// Builds the update of a layer with `n_in` inputs and `n_out` outputs.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn build(
        p: &mut ParamBuilder<'_>,
        config: LoraConfig,
        n_in: usize,
        n_out: usize,
    ) -> Result<Self> {
        let bound = 1.0 / (n_in.max(1) as f32).sqrt();
        let (role, rank) = (Role::Adapter, config.rank);
        let a = p.at("lora_A").param("weight", role, [rank, n_in], Init::Uniform(bound))?;
        let b = p.at("lora_B").param("weight", role, [n_out, rank], Init::Constant(0.0))?;
        Ok(Self { a, b, scale: config.scale() })
    }

    /// Computes the update `s · B (A x)`.
    pub(super) fn update(&self, x: &Tensor) -> Result<Tensor> {
        // The scale costs least at width R.
        let low = x.linear(&self.a.tensor(), OutIn, None)?.scale(self.scale)?;
        low.linear(&self.b.tensor(), OutIn, None)
    }
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &dyn BaseLayer) -> Result<Tensor> {
        base.forward(x)?.add(&self.update(x)?)
    }

    fn merge(&self, weight: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            // `B A`: the rows of B times A, `[O, R] [R, I]`.
            let (a, b) = (self.a.to_host()?, self.b.to_host()?);
            weight.add(&b.matmul(&a)?.scale(self.scale)?)
        })
    }
}
