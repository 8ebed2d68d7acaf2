//! `[optimizer]` and `[schedule]`.

use serde::{Deserialize, Deserializer, Serialize, de};
use toml::Table;

use super::groups::{self, GroupChange, MuonConfig};
use super::{Faults, Recipe};

/// `[optimizer]`: one update rule with its own keys, and the keys of every rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// The update rule.
    #[serde(flatten)]
    pub rule: OptimizerRule,
    /// Peak learning rate; with Muon that of matrices.
    pub lr: f32,
    /// Limit of the gradient's norm: a larger gradient is scaled down to it; 0 = no limit.
    pub clip_norm: f32,
    /// Whether each parameter is updated as soon as backward has its gradient, whose memory is then
    /// released. It excludes clipping and accumulation, which need the whole gradient. If a
    /// gradient is not finite, parameters updated before it keep their update.
    pub in_backward: bool,
}

/// The update rule, and the keys that only this rule has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerRule {
    /// AdamW (Loshchilov and Hutter 2019). Matrices decay, vectors (norms, biases) do not.
    Adamw(AdamwConfig),
    /// Muon (Jordan 2024) for matrices, AdamW for everything else.
    Muon(MuonConfig),
}

/// The keys of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamwConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Learning rate of embeddings, as a multiple of `lr`. Few tokens of a batch use a given row,
    /// so a short run must move it far in few updates.
    pub embedding_lr_ratio: f32,
    /// Whether only weights decay whose update also moves them towards 0.
    pub cautious: bool,
    /// Keys of matrices that are neither embeddings nor the head.
    #[serde(default, skip_serializing_if = "GroupChange::is_empty")]
    pub matrices: GroupChange,
    /// Keys of tables whose rows are looked up, and of the head if it is tied to one.
    #[serde(default, skip_serializing_if = "GroupChange::is_empty")]
    pub embeddings: GroupChange,
    /// Keys of the projection to tokens or labels.
    #[serde(default, skip_serializing_if = "GroupChange::is_empty")]
    pub head: GroupChange,
    /// Keys of vectors: norms, biases, scalars. They decay only if `weight_decay` is here.
    #[serde(default, skip_serializing_if = "GroupChange::is_empty")]
    pub others: GroupChange,
}

/// The keys of every rule, as documented in [`OptimizerConfig`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    lr: f32,
    clip_norm: f32,
    in_backward: bool,
}

/// The names of the fields of [`Shared`].
const SHARED: [&str; 3] = ["lr", "clip_norm", "in_backward"];

/// Reads the shared keys and gives the rest to the rule. `#[serde(flatten)]` would do the same, but
/// it would accept unknown keys.
impl<'de> Deserialize<'de> for OptimizerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = Table::deserialize(deserializer)?;
        groups::add_muon_defaults(&mut table);
        let (shared, rule): (Table, Table) =
            table.into_iter().partition(|(key, _)| SHARED.contains(&key.as_str()));
        let rule: OptimizerRule = rule.try_into().map_err(|e: toml::de::Error| {
            let others = match e.message().starts_with("unknown field") {
                true => SHARED.map(|key| format!(", `{key}`")).concat(),
                false => String::new(),
            };
            de::Error::custom(format!("{}{others}", e.message()))
        })?;
        let Shared { lr, clip_norm, in_backward } =
            shared.try_into().map_err(|e: toml::de::Error| de::Error::custom(e.message()))?;
        Ok(Self { rule, lr, clip_norm, in_backward })
    }
}

impl OptimizerConfig {
    /// Returns the same with a changed rule, if that is AdamW.
    #[must_use]
    pub fn with_adamw(mut self, change: impl FnOnce(&mut AdamwConfig)) -> Self {
        if let OptimizerRule::Adamw(adamw) = &mut self.rule {
            change(adamw);
        }
        self
    }

    /// Returns the same with a changed rule, if that is Muon.
    #[must_use]
    pub fn with_muon(mut self, change: impl FnOnce(&mut MuonConfig)) -> Self {
        if let OptimizerRule::Muon(muon) = &mut self.rule {
            change(muon);
        }
        self
    }

    /// Returns Muon with its defaults and this rate of matrices.
    #[must_use]
    pub fn muon(lr: f32) -> Self {
        let table = Table::from_iter([
            ("kind".to_owned(), "muon".into()),
            ("lr".to_owned(), f64::from(lr).into()),
        ]);
        table.try_into().expect("muon.toml has all other keys")
    }

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let Self { lr, clip_norm, in_backward, .. } = *self;
        faults.check(lr.is_finite() && lr >= 0.0, "optimizer.lr", &lr, "0 or more");
        faults.check(clip_norm >= 0.0, "optimizer.clip_norm", &clip_norm, "0 or more");
        let whole = clip_norm > 0.0 || recipe.train.grad_accumulation > 1;
        let expected = "false, or optimizer.clip_norm = 0 and train.grad_accumulation = 1";
        faults.check(!(in_backward && whole), "optimizer.in_backward", &in_backward, expected);
        // In f16 a step that overflows is repeated. That needs the whole gradient before any
        // update.
        let scales = recipe.run.dtype == lehr_model::DTypeChoice::F16;
        let expected = "false, because run.dtype is f16";
        faults.check(!(in_backward && scales), "optimizer.in_backward", &in_backward, expected);
        match &self.rule {
            OptimizerRule::Adamw(adamw) => adamw.validate(lr, faults),
            OptimizerRule::Muon(muon) => {
                muon.validate(faults);
                let groups = [muon.embeddings, muon.head, muon.others];
                check_peak(lr, groups.iter().any(|group| group.lr > 0.0), faults);
            }
        }
    }
}

/// The schedule scales the rate of every group with `lr`, so `lr` must not be 0 if a group has a
/// rate of its own.
fn check_peak(lr: f32, has_own: bool, faults: &mut Faults) {
    let expected = "more than 0, because groups have learning rates of their own";
    faults.check(!(has_own && lr == 0.0), "optimizer.lr", &lr, expected);
}

impl AdamwConfig {
    fn validate(&self, lr: f32, faults: &mut Faults) {
        let Self { beta1, beta2, eps, weight_decay, embedding_lr_ratio: ratio, .. } = *self;
        groups::check_share(beta1, "optimizer.beta1", faults);
        groups::check_share(beta2, "optimizer.beta2", faults);
        faults.check(eps > 0.0, "optimizer.eps", &eps, "more than 0");
        groups::check_not_negative(weight_decay, "optimizer.weight_decay", faults);
        groups::check_not_negative(ratio, "optimizer.embedding_lr_ratio", faults);
        let Self { matrices, embeddings, head, others, .. } = *self;
        for (group, name) in
            [(matrices, "matrices"), (embeddings, "embeddings"), (head, "head"), (others, "others")]
        {
            group.validate(name, faults);
            check_peak(lr, group.lr.is_some_and(|lr| lr > 0.0), faults);
        }
        let twice = embeddings.lr.is_some() && ratio.to_bits() != 1.0f32.to_bits();
        let expected = "1, because optimizer.embeddings.lr gives the rate";
        faults.check(!twice, "optimizer.embedding_lr_ratio", &ratio, expected);
    }
}

/// `[schedule]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// Linear warm-up, then half a cosine down to `min_ratio` of the peak.
    Cosine {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Share of the peak at the end.
        min_ratio: f32,
    },
    /// Linear warm-up, constant, then decay to `min_ratio` of the peak over the last `decay_steps`
    /// (warm-up, stable, decay: Hu et al. 2024).
    Wsd {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Steps of decay.
        decay_steps: u64,
        /// Share of the peak at the end.
        min_ratio: f32,
        /// Curve of the decay. Recipes of older runs lack it.
        #[serde(default)]
        decay_shape: DecayShape,
    },
}

/// The curve by which a learning rate falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecayShape {
    /// A straight line.
    #[default]
    #[serde(rename = "linear")]
    Linear,
    /// One minus the square root of the share that is done: it falls fast at first (Hägele et al.
    /// 2024).
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl ScheduleConfig {
    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let (warmup, decay, min_ratio) = match *self {
            Self::Cosine { warmup_steps, min_ratio } => (warmup_steps, 0, min_ratio),
            Self::Wsd { warmup_steps, decay_steps, min_ratio, .. } => {
                (warmup_steps, decay_steps, min_ratio)
            }
        };
        faults.check((0.0..=1.0).contains(&min_ratio), "schedule.min_ratio", &min_ratio, "0 to 1");
        let total = warmup.saturating_add(decay);
        let within = total <= recipe.train.steps;
        faults.check(within, "schedule: warm-up and decay", &total, "at most train.steps");
    }
}
