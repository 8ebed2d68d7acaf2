//! `[adapter]`

use lehr_model::Weights;
use lehr_model::adapt::{AdapterConfig, AdapterMethod, LoraConfig, LoraScaling, Targets};
use lehr_tensor::NamePattern;
use serde::{Deserialize, Serialize};

use super::{Faults, Recipe, SavedWeights};

/// The value of `adapter.weights` by which the format follows from the model.
const AUTO: &str = "auto";

/// `[adapter]`: what is trained beside a frozen model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AdapterSection {
    /// Nothing: the model itself is trained.
    #[default]
    None,
    /// Low-rank updates of linear layers.
    Lora(LowRank),
    /// The same, with lengths of the rows that are trained apart.
    Dora(LowRank),
}

/// The keys of low-rank updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// Rank of the updates.
    pub rank: usize,
    /// Their scale before it is divided.
    pub alpha: f32,
    /// By what it is divided.
    pub scaling: LoraScaling,
    /// Patterns of the adapted layers' paths; empty = all linear layers of the blocks.
    pub targets: Vec<String>,
    /// Format in which the frozen matrices are kept: `auto` (quantised ones as stored, others in
    /// f32), or one of `--weights`, such as `int8` or `nf4`.
    pub weights: String,
}

impl LowRank {
    /// Usual settings for a rank: a scale of 2, all linear layers of the blocks.
    #[must_use]
    pub fn of_rank(rank: usize) -> Self {
        Self {
            rank,
            alpha: 2.0 * rank as f32,
            scaling: LoraScaling::Rank,
            targets: Vec::new(),
            weights: AUTO.to_owned(),
        }
    }
}

impl AdapterSection {
    /// Returns whether the model itself is trained.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Returns the settings for the model and the format of its frozen matrices, `None` for
    /// [`AUTO`]; `None` if there is no adapter.
    pub(crate) fn config(&self, seed: u64) -> Option<(AdapterConfig, Option<Weights>)> {
        let method = match self {
            Self::None => return None,
            Self::Lora(_) => AdapterMethod::Lora,
            Self::Dora(_) => AdapterMethod::Dora,
        };
        let LowRank { rank, alpha, scaling, targets, weights } = self.low_rank()?;
        let targets = match targets.is_empty() {
            true => Targets::Blocks,
            false => Targets::Layers(targets.iter().map(NamePattern::new).collect()),
        };
        let config = LoraConfig { rank: *rank, alpha: *alpha, scaling: *scaling };
        Some((AdapterConfig { targets, method: method(config), seed }, weights.parse().ok()))
    }

    /// Returns the keys of low-rank updates, if there are such.
    fn low_rank(&self) -> Option<&LowRank> {
        match self {
            Self::None => None,
            Self::Lora(low_rank) | Self::Dora(low_rank) => Some(low_rank),
        }
    }

    /// Returns the value of `adapter.kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lora(_) => "lora",
            Self::Dora(_) => "dora",
        }
    }

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let Some(LowRank { rank, alpha, targets, weights, .. }) = self.low_rank() else { return };
        faults.check(*rank > 0, "adapter.rank", rank, "at least 1");
        faults.check(alpha.is_finite(), "adapter.alpha", alpha, "a finite number");
        let expected = "auto, or a format of --weights, such as f32, int8 or nf4";
        let is_format = weights == AUTO || weights.parse::<Weights>().is_ok();
        faults.check(is_format, "adapter.weights", weights, expected);
        let empty = targets.iter().position(String::is_empty);
        let found = empty.map_or(String::new(), |index| format!("empty at {index}"));
        faults.check(empty.is_none(), "adapter.targets", &found, "patterns of layers' paths");
        let is_loaded = recipe.model.is_loaded();
        let expected = "none, unless model.kind is load";
        faults.check(is_loaded, "adapter.kind", &self.kind(), expected);
        let saves_all = recipe.checkpoint.weights == SavedWeights::All;
        let expected = "all: with an adapter checkpoints hold the adapter, and refer to the model";
        faults.check(saves_all, "checkpoint.weights", &"trained", expected);
        let good = recipe.train.freeze.is_empty();
        let expected = "none, because an adapter freezes the whole model";
        faults.check(good, "train.freeze", &"given", expected);
    }
}
