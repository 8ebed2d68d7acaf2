//! Parameter groups of `[optimizer]`, and the keys of Muon.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Faults;

/// Keys of a group that differ from those of the whole optimiser: `[optimizer.head]` with AdamW.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Peak learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Decay of the first moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f32>,
    /// Decay of the second moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f32>,
    /// Decoupled weight decay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
}

impl GroupChange {
    /// Returns whether the group has no key of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self, name: &str, faults: &mut Faults) {
        let Self { lr, beta1, beta2, weight_decay } = *self;
        let group = GroupConfig {
            lr: lr.unwrap_or(1.0),
            beta1: beta1.unwrap_or(0.0),
            beta2: beta2.unwrap_or(0.0),
            weight_decay: weight_decay.unwrap_or(0.0),
        };
        group.validate(name, faults);
    }
}

/// The keys of a group that AdamW updates in a run with Muon: `[optimizer.head]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Peak learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl GroupConfig {
    fn validate(&self, name: &str, faults: &mut Faults) {
        let Self { lr, beta1, beta2, weight_decay } = *self;
        let key = |key: &str| format!("optimizer.{name}.{key}");
        check_not_negative(lr, &key("lr"), faults);
        check_share(beta1, &key("beta1"), faults);
        check_share(beta2, &key("beta2"), faults);
        check_not_negative(weight_decay, &key("weight_decay"), faults);
    }
}

pub(super) fn check_not_negative(value: f32, key: &str, faults: &mut Faults) {
    faults.check(value.is_finite() && value >= 0.0, key, &value, "0 or more");
}

pub(super) fn check_share(value: f32, key: &str, faults: &mut Faults) {
    faults.check((0.0..1.0).contains(&value), key, &value, "0 or more, below 1");
}

/// The keys of Muon, for matrices between embedding and head; `optimizer.lr` is their rate. AdamW
/// updates everything else, in groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MuonConfig {
    /// Decay of the momentum after the warm-up.
    pub momentum: f32,
    /// Decay of the momentum in the first step.
    pub momentum_start: f32,
    /// Steps in which it rises linearly from `momentum_start` to `momentum`.
    pub momentum_warmup_steps: u64,
    /// Decay of the momentum in the last step.
    pub momentum_end: f32,
    /// Last steps of the run in which it goes linearly to `momentum_end`.
    pub momentum_cooldown_steps: u64,
    /// Decay of the second moment, which has a number per row or per column of a matrix.
    pub beta2: f32,
    /// Decoupled weight decay of matrices at the first step.
    pub weight_decay: f32,
    /// The decay after the last step, which the decay approaches linearly.
    pub weight_decay_end: f32,
    /// Whether only weights decay whose update also moves them towards 0, in all groups.
    pub cautious: bool,
    /// Matrices move every so many steps, by as many times the rate. The momentum takes each
    /// gradient in.
    pub every: u64,
    /// Added to the root of the second moment by AdamW.
    pub eps: f32,
    /// Whether rows of embeddings that a step does not use keep their values and moments. It saves
    /// the time of going through large tables.
    pub lazy_embeddings: bool,
    /// Tables whose rows are looked up, and the head if it is tied to one.
    pub embeddings: GroupConfig,
    /// The projection to tokens or labels.
    pub head: GroupConfig,
    /// All other parameters: scales of norms, biases, scalars, adapters.
    pub others: GroupConfig,
}

impl MuonConfig {
    pub(super) fn validate(&self, faults: &mut Faults) {
        for (value, key) in [
            (self.momentum, "optimizer.momentum"),
            (self.momentum_start, "optimizer.momentum_start"),
            (self.momentum_end, "optimizer.momentum_end"),
            (self.beta2, "optimizer.beta2"),
        ] {
            check_share(value, key, faults);
        }
        check_not_negative(self.weight_decay, "optimizer.weight_decay", faults);
        check_not_negative(self.weight_decay_end, "optimizer.weight_decay_end", faults);
        faults.check(self.every >= 1, "optimizer.every", &self.every, "1 or more");
        faults.check(self.eps > 0.0, "optimizer.eps", &self.eps, "more than 0");
        self.embeddings.validate("embeddings", faults);
        self.head.validate("head", faults);
        self.others.validate("others", faults);
    }
}

/// Adds the keys that `[optimizer]` lacks if its kind is Muon.
pub(super) fn add_muon_defaults(optimizer: &mut Table) {
    if optimizer.get("kind").and_then(Value::as_str) == Some("muon") {
        let defaults = toml::from_str(include_str!("muon.toml")).expect("muon.toml is TOML");
        add_missing(optimizer, defaults);
    }
}

fn add_missing(table: &mut Table, defaults: Table) {
    for (key, default) in defaults {
        match (table.get_mut(&key), default) {
            (Some(Value::Table(given)), Value::Table(default)) => add_missing(given, default),
            // People type a whole number for a fractional setting.
            (Some(given), Value::Float(_)) => {
                if let Value::Integer(whole) = *given {
                    *given = Value::Float(whole as f64);
                }
            }
            (Some(_), _) => {}
            (None, default) => {
                table.insert(key, default);
            }
        }
    }
}
