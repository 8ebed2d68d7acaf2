//! Inverse frequencies of rotary embeddings and the ways to stretch them to longer contexts.
//!
//! Published models were run with frequencies computed in f32 by the functions of Hugging Face
//! transformers (`modeling_rope_utils.py`). The functions here round to f32 at the same places and
//! return the f32 values as f64, so that a model sees the angles it was trained with.

use std::f64::consts::TAU;

/// Rounds to f32, as each step on a tensor does.
fn f(x: f64) -> f64 {
    f64::from(x as f32)
}

/// `theta^(2i/R)` for `i` in `0..R/2`, rounded to f32 after each step.
fn powers(theta: f64, rotary_dim: usize) -> impl Iterator<Item = f64> {
    let dim = rotary_dim as f64;
    (0..rotary_dim).step_by(2).map(move |i| f(f(theta).powf(f(i as f64 / dim))))
}

/// The frequencies of the original embedding: `ω_i = theta^(−2i/R)` for `i` in `0..R/2`.
///
/// Su et al. 2021, <https://arxiv.org/abs/2104.09864>, section 3.2.2.
#[must_use]
pub fn inverse_frequencies(theta: f64, rotary_dim: usize) -> Vec<f64> {
    powers(theta, rotary_dim).map(|power| f(1.0 / power)).collect()
}

/// Rounds the frequencies to 16-bit floats, for models that store them in half precision (ChatGLM).
#[must_use]
pub fn rounded_to_f16(inv_freq: &[f64]) -> Vec<f64> {
    inv_freq.iter().map(|w| half::f16::from_f64(*w).to_f64()).collect()
}

/// Position interpolation: `ω_i / factor`, which squeezes `factor` times the context into the
/// angles the model knows.
///
/// Chen et al. 2023, <https://arxiv.org/abs/2306.15595>.
#[must_use]
pub fn linear_scaled(inv_freq: &[f64], factor: f64) -> Vec<f64> {
    inv_freq.iter().map(|w| f(w / f(factor))).collect()
}

/// Llama 3.1's scaling, by wavelength `λ = 2π / ω` against the original context `C`:
///
/// - `λ > C / low_freq_factor` (slow): `ω / factor`;
/// - `λ < C / high_freq_factor` (fast): `ω`;
/// - between: `((1 − s) / factor + s) ω` with
///   `s = (C/λ − low_freq_factor) / (high_freq_factor − low_freq_factor)`.
///
/// Grattafiori et al. 2024, <https://arxiv.org/abs/2407.21783>; `rope_type` "llama3".
#[must_use]
pub fn llama3_scaled(
    inv_freq: &[f64],
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max_positions: f64,
) -> Vec<f64> {
    let longest = f(original_max_positions / low_freq_factor);
    let shortest = f(original_max_positions / high_freq_factor);
    let scale = |&w: &f64| {
        let wavelength = f(f(1.0 / w) * f(TAU));
        if wavelength > longest {
            return f(w / f(factor));
        }
        if wavelength < shortest {
            return w;
        }
        let turns = f(f(1.0 / wavelength) * f(original_max_positions));
        let s = f(f(turns - f(low_freq_factor)) / f(high_freq_factor - low_freq_factor));
        let slow = f(f(f(1.0 - s) * w) / f(factor));
        f(slow + f(s * w))
    };
    inv_freq.iter().map(scale).collect()
}

/// The parameters of [`yarn_scaled`]; the names are those of `rope_scaling` in a `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Factor by which the context is extended.
    pub factor: f64,
    /// Context length of the original model.
    pub original_max_positions: f64,
    /// Frequencies that turn more often than this within the original context stay as they are.
    pub beta_fast: f64,
    /// Frequencies that turn less often than this are divided by `factor`.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are rounded to whole dimensions outwards.
    pub truncate: bool,
    /// Factor on cosine and sine, if the model gives one.
    pub attention_factor: Option<f64>,
    /// DeepSeek's numerator of the attention factor.
    pub mscale: Option<f64>,
    /// DeepSeek's denominator of the attention factor.
    pub mscale_all_dim: Option<f64>,
}

impl Yarn {
    /// The paper's choices: ramp from 32 turns to 1, attention factor `0.1 ln(factor) + 1`.
    #[must_use]
    pub fn new(factor: f64, original_max_positions: f64) -> Self {
        Self {
            factor,
            original_max_positions,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
        }
    }

    /// Returns the factor on cosine and sine: the given one, or `m(mscale) / m(mscale_all_dim)` if
    /// the model has both, or `m(1)`, with `m(k) = 0.1 k ln(factor) + 1` (1 if `factor <= 1`).
    fn amplitude(&self) -> f64 {
        let m = |k: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * k * self.factor.ln() + 1.0 };
        let given = |k: Option<f64>| k.filter(|k| *k != 0.0);
        match (self.attention_factor, given(self.mscale), given(self.mscale_all_dim)) {
            (Some(factor), _, _) => factor,
            (None, Some(above), Some(below)) => m(above) / m(below),
            (None, _, _) => m(1.0),
        }
    }

    /// Returns the first and the last dimension of the ramp.
    fn ramp(&self, theta: f64, rotary_dim: usize) -> (f64, f64) {
        let dim = rotary_dim as f64;
        // Solves C · theta^(−2d/R) = 2π · turns for d.
        let dimension = |turns: f64| {
            dim * (self.original_max_positions / (turns * TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // A ramp of no length would divide by 0.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

/// YaRN: fast frequencies stay, slow ones are divided by `factor`, and a linear ramp over the
/// dimensions joins them: `ω_i = (1 − r_i) theta^(−2i/R) + r_i theta^(−2i/R) / factor` with
/// `r_i = clamp((i − low) / (high − low), 0, 1)`, where `low` and `high` are the dimensions that
/// turn `beta_fast` and `beta_slow` times within the original context.
///
/// Returns the frequencies and the attention factor, the `amplitude` of
/// [`RopeTable::new`](super::RopeTable::new).
///
/// Peng et al. 2023, <https://arxiv.org/abs/2309.00071>; `rope_type` "yarn".
#[must_use]
pub fn yarn_scaled(theta: f64, rotary_dim: usize, yarn: &Yarn) -> (Vec<f64>, f64) {
    let (low, high) = yarn.ramp(theta, rotary_dim);
    let mix = |(i, power): (usize, f64)| {
        let ramp = f(f(i as f64 - f(low)) / f(high - low)).clamp(0.0, 1.0);
        let keep = f(1.0 - ramp);
        let stretched = f(1.0 / f(f(yarn.factor) * power));
        f(f(stretched * f(1.0 - keep)) + f(f(1.0 / power) * keep))
    };
    (powers(theta, rotary_dim).enumerate().map(mix).collect(), yarn.amplitude())
}
