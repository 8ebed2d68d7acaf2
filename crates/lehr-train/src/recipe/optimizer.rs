//! `[optimizer]` and `[schedule]`.

use serde::{Deserialize, Deserializer, Serialize, de};
use toml::Table;

use super::{Faults, Recipe};

/// `[optimizer]`: one update rule with its own keys, and the keys of every rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// The update rule.
    #[serde(flatten)]
    pub rule: OptimizerRule,
    /// Peak learning rate.
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
        let (shared, rule): (Table, Table) = Table::deserialize(deserializer)?
            .into_iter()
            .partition(|(key, _)| SHARED.contains(&key.as_str()));
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
    /// The same with a new rule.
    #[must_use]
    pub fn with_adamw(self, change: impl FnOnce(&mut AdamwConfig)) -> Self {
        let OptimizerRule::Adamw(mut adamw) = self.rule;
        change(&mut adamw);
        Self { rule: OptimizerRule::Adamw(adamw), ..self }
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
            OptimizerRule::Adamw(adamw) => adamw.validate(faults),
        }
    }
}

impl AdamwConfig {
    fn validate(&self, faults: &mut Faults) {
        let Self { beta1, beta2, eps, weight_decay, embedding_lr_ratio: ratio } = *self;
        faults.check((0.0..1.0).contains(&beta1), "optimizer.beta1", &beta1, "0 or more, below 1");
        faults.check((0.0..1.0).contains(&beta2), "optimizer.beta2", &beta2, "0 or more, below 1");
        faults.check(eps > 0.0, "optimizer.eps", &eps, "more than 0");
        faults.check(weight_decay >= 0.0, "optimizer.weight_decay", &weight_decay, "0 or more");
        let good = ratio.is_finite() && ratio >= 0.0;
        faults.check(good, "optimizer.embedding_lr_ratio", &ratio, "0 or more");
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
