//! Rotary settings of a `config.json`, and the angles computed from them.
//!
//! Hugging Face transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 writes one
//! map `rope_parameters`. This file reads both, with the precedence and the defaults of
//! transformers 5.23 (`modeling_rope_utils.py`).

use lehr_tensor::Tensor;
use lehr_tensor::ops::rope::frequencies::{self, Yarn};
use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The rotary keys of a `config.json`. They are kept as found, so a saved file means the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeConfig {
    /// Base of the frequencies (transformers 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Scaling of the frequencies (transformers 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// Base and scaling (transformers 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// Context of pre-training, if it stands beside the maps instead of in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<u64>,
    /// Fraction of the head that is rotated: all of it, except in GLM-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

impl RopeConfig {
    /// Describes unscaled frequencies of this base.
    #[must_use]
    pub fn with_theta(theta: f64) -> Self {
        Self { rope_theta: Some(theta), ..Self::default() }
    }

    /// Combines the keys. `max_positions` is the model's longest context.
    ///
    /// # Errors
    /// If the kind of scaling is unknown, lacks a number or has an invalid one.
    pub fn settings(&self, max_positions: usize) -> Result<RopeSettings> {
        self.check_whole_head()?;
        let parameters = self.parameters();
        if let Some((key, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
            let expected = "one map for all layers in this family";
            return Err(Error::config("rope_parameters", format!("a map by {key}"), expected));
        }
        RopeSettings::read(&parameters, self.rope_theta.unwrap_or(10_000.0), max_positions)
    }

    /// Combines the keys as [`RopeConfig::settings`], for families that rotate part of the head.
    /// Also returns that fraction; `usual` is its default.
    pub(super) fn settings_of_part(
        &self,
        max_positions: usize,
        usual: f64,
    ) -> Result<(RopeSettings, f64)> {
        let mut parameters = self.parameters();
        let in_map = Parameters(&parameters).number("partial_rotary_factor")?;
        parameters.remove("partial_rotary_factor");
        let part = in_map.or(self.partial_rotary_factor).unwrap_or(usual);
        let whole = Self {
            rope_scaling: None,
            rope_parameters: Some(parameters),
            partial_rotary_factor: None,
            ..self.clone()
        };
        Ok((whole.settings(max_positions)?, part))
    }

    /// Returns the map that takes precedence.
    fn parameters(&self) -> Map<String, Value> {
        let scaling = self.rope_scaling.as_ref().filter(|map| !map.is_empty());
        let mut parameters = scaling.or(self.rope_parameters.as_ref()).cloned().unwrap_or_default();
        if let Some(original) = self.original_max_position_embeddings {
            parameters.insert(ORIGINAL.to_owned(), original.into());
        }
        parameters
    }

    /// Checks that the whole head is rotated.
    pub(super) fn check_whole_head(&self) -> Result<()> {
        match self.partial_rotary_factor {
            None => Ok(()),
            Some(factor) => check_whole_head(factor),
        }
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn check_whole_head(factor: f64) -> Result<()> {
    if factor == 1.0 {
        return Ok(());
    }
    Err(Error::config("partial_rotary_factor", factor, "1 in this family"))
}

/// Base and scaling of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSettings {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of rotary frequencies beyond the context of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// All frequencies by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies by the factor, high ones unchanged, with a ramp between (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths beyond `original / low` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are unchanged.
        high_freq_factor: f64,
        /// Context of pre-training.
        original_max_positions: f64,
    },
    /// Slow dimensions by the factor, fast ones unchanged, with an attention factor (YaRN).
    Yarn(Yarn),
}

impl RopeSettings {
    /// Reads a map of parameters. `theta` and `max_positions` are the defaults of missing keys.
    pub(super) fn read(
        parameters: &Map<String, Value>,
        theta: f64,
        max_positions: usize,
    ) -> Result<Self> {
        let map = Parameters(parameters);
        if let Some(factor) = map.number("partial_rotary_factor")? {
            check_whole_head(factor)?;
        }
        let original = || map.positive(ORIGINAL).map(|n| n.unwrap_or(max_positions as f64));
        let scaling = match map.kind()? {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: map.need("factor")? },
            "llama3" => {
                let low_freq_factor = map.need("low_freq_factor")?;
                let high_freq_factor = map.need("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("more than low_freq_factor = {low_freq_factor}");
                    return Err(map.error("high_freq_factor", high_freq_factor, &expected));
                }
                RopeScaling::Llama3 {
                    factor: map.need("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions: original()?,
                }
            }
            "yarn" => RopeScaling::Yarn(map.yarn(original()?, max_positions)?),
            other => {
                return Err(map.error("rope_type", other, "default, linear, llama3 or yarn"));
            }
        };
        let theta = map.positive("rope_theta")?.unwrap_or(theta);
        if theta == 1.0 && matches!(scaling, RopeScaling::Yarn(_)) {
            return Err(map.error(
                "rope_theta",
                theta,
                "other than 1: YaRN divides by its logarithm",
            ));
        }
        Ok(Self { theta, scaling })
    }
}

/// A map of rotary parameters. Its errors name the keys.
struct Parameters<'a>(&'a Map<String, Value>);

impl Parameters<'_> {
    fn error(&self, key: &str, found: impl std::fmt::Display, expected: &str) -> Error {
        Error::config(&format!("rope_parameters.{key}"), found, expected)
    }

    fn kind(&self) -> Result<&str> {
        match self.0.get("rope_type").or_else(|| self.0.get("type")) {
            None | Some(Value::Null) => Ok("default"),
            Some(Value::String(kind)) => Ok(kind),
            Some(other) => Err(self.error("rope_type", other, "a name")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(key, value, "a number")),
            },
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.error(key, number, "a positive number")),
            other => Ok(other),
        }
    }

    fn need(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.error(key, "missing", "a positive number"))
    }

    fn yarn(&self, original_max_positions: f64, max_positions: usize) -> Result<Yarn> {
        // DeepSeek writes `null` for the ratio of the contexts.
        let factor = match self.0.get("factor") {
            Some(Value::Null) => max_positions as f64 / original_max_positions,
            _ => self.need("factor")?,
        };
        let usual = Yarn::new(factor, original_max_positions);
        // As in the reference, 0 and null mean the default.
        let beta = |key: &str, usual: f64| match self.number(key)? {
            None | Some(0.0) => Ok(usual),
            Some(_) => self.need(key),
        };
        let truncate = match self.0.get("truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(Value::Null) => false,
            Some(other) => return Err(self.error("truncate", other, "true or false")),
        };
        Ok(Yarn {
            beta_fast: beta("beta_fast", usual.beta_fast)?,
            beta_slow: beta("beta_slow", usual.beta_slow)?,
            truncate,
            attention_factor: self.number("attention_factor")?,
            mscale: self.number("mscale")?,
            mscale_all_dim: self.number("mscale_all_dim")?,
            ..usual
        })
    }
}

/// The rotary frequencies of one kind of block.
pub(super) struct Rope {
    inv_freq: Vec<f64>,
    amplitude: f64,
}

impl Rope {
    /// Computes the frequencies for heads with `head_dim` rotated dimensions.
    pub(super) fn new(settings: &RopeSettings, head_dim: usize) -> Result<Self> {
        let theta = settings.theta;
        let plain = || frequencies::inverse_frequencies(theta, head_dim);
        let (inv_freq, amplitude) = match settings.scaling {
            RopeScaling::Default => (plain(), 1.0),
            RopeScaling::Linear { factor } => (frequencies::linear_scaled(&plain(), factor), 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            } => (frequencies::llama3_scaled(&plain(), factor, low, high, original), 1.0),
            RopeScaling::Yarn(yarn) => frequencies::yarn_scaled(theta, head_dim, &yarn),
        };
        if inv_freq.iter().chain([&amplitude]).all(|w| w.is_finite()) {
            return Ok(Self { inv_freq, amplitude });
        }
        let found = format!("{settings:?}");
        Err(Error::config("rope_parameters", found, "settings with finite frequencies"))
    }

    /// Turns the rotation round: angles are those of negative positions (nanochat).
    pub(super) fn reversed(self) -> Self {
        Self { inv_freq: self.inv_freq.iter().map(|w| -w).collect(), ..self }
    }

    /// Computes the angles of tokens at these positions.
    pub(super) fn table(&self, positions: &Tensor, layout: RopeLayout) -> Result<RopeTable> {
        Ok(RopeTable::new(positions, &self.inv_freq, layout, self.amplitude)?)
    }
}
