//! ChatGLM-6B (THUDM 2023): LayerNorm whose output is also the residual ("DeepNorm"), a
//! bidirectional context, RoPE in two dimensions, a GELU MLP. Weights are `[out, in]`.
//! `deepnorm.rs` gives the equations of a block.

use lehr_tensor::Role;
use lehr_tensor::ops::rope::frequencies;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::deepnorm::{self, Mlp, Rotation, WeightStd};
use super::prefix::{MaskToken, PrefixRule};
use super::{Architecture, FamilyConfig, Spec, Tie, divides, positive};
use crate::nn::{LayerBuilder, Linear, LinearShape};
use crate::{Error, Result};

/// The settings of a ChatGLM-6B `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatGlmConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub inner_hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Longest context.
    #[serde(default = "default_length")]
    pub max_sequence_length: usize,
    /// Added to the variance in every norm.
    #[serde(default = "default_eps")]
    pub layernorm_epsilon: f32,
    /// Whether tokens have two positions. No other variant has been published.
    #[serde(default = "yes")]
    pub position_encoding_2d: bool,
    /// α, the factor of the residual. The default is √(2 · 28), for the 28 layers of the published
    /// model. The published code uses this number at every depth.
    #[serde(default = "default_alpha")]
    pub deepnorm_alpha: f64,
    /// Rounding of the inverse frequencies of the rotation: `float16` as in the published code, or
    /// `float32`.
    #[serde(default)]
    pub inv_freq_dtype: FrequencyDtype,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// Whether the head is tied to the embedding. Checkpoints hold both under separate names. In
    /// the published one they are equal, so tying affects training only.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// `<sop>`, which ends the context.
    pub bos_token_id: u32,
    /// `<eop>`, which ends the answer.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
    /// `[MASK]`. The default is `bos_token_id` − 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_token_id: Option<u32>,
    /// `[gMASK]`. The default is `bos_token_id` − 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gmask_token_id: Option<u32>,
    /// Padding token.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Virtual tokens of a P-tuned checkpoint. Such checkpoints are not supported yet.
    #[serde(default, skip_serializing)]
    pre_seq_len: Option<usize>,
    /// Bits of a quantised checkpoint. Such checkpoints are not supported yet.
    #[serde(default, skip_serializing)]
    quantization_bit: Option<usize>,
}

/// Rounding of inverse frequencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrequencyDtype {
    /// 16-bit floats, as the published ChatGLM code stores them.
    #[default]
    Float16,
    /// 32-bit floats.
    Float32,
}

impl FrequencyDtype {
    fn round(self, inv_freq: Vec<f64>) -> Vec<f64> {
        match self {
            Self::Float16 => frequencies::rounded_to_f16(&inv_freq),
            Self::Float32 => inv_freq,
        }
    }
}

fn default_length() -> usize {
    2048
}
fn default_eps() -> f32 {
    1e-5
}
fn default_std() -> f32 {
    0.02
}
fn default_alpha() -> f64 {
    56.0f64.sqrt()
}
fn yes() -> bool {
    true
}

/// Rejects the checkpoints of `THUDM` that hold anything but plain weights.
pub(super) fn only_plain(pre_seq_len: Option<usize>, bits: Option<usize>) -> Result<()> {
    if let Some(n) = pre_seq_len {
        let expected = "null: P-tuned checkpoints cannot be read yet";
        return Err(Error::config("pre_seq_len", n, expected));
    }
    match bits {
        None | Some(0) => Ok(()),
        Some(bits) => {
            let expected = "0: take the checkpoint with 16-bit floats";
            Err(Error::config("quantization_bit", bits, expected))
        }
    }
}

impl FamilyConfig for ChatGlmConfig {
    const MODEL_TYPE: &'static str = "chatglm";
    const CLASS: &'static str = "ChatGLMModel";

    fn recognises(json: &Value) -> bool {
        // ChatGLM2 and 3 share the model type.
        json.get("model_type").and_then(Value::as_str) == Some(Self::MODEL_TYPE)
            && json.get("padded_vocab_size").is_none()
    }

    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("inner_hidden_size", self.inner_hidden_size),
            ("num_layers", self.num_layers),
            ("max_sequence_length", self.max_sequence_length),
        ] {
            positive(key, value)?;
        }
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        if !self.spec().head_dim.is_multiple_of(4) {
            let expected = "hidden_size divided by a multiple of 4, the width of a head";
            return Err(Error::config("num_attention_heads", self.num_attention_heads, expected));
        }
        if !self.position_encoding_2d {
            return Err(Error::config("position_encoding_2d", false, "true"));
        }
        if !(self.deepnorm_alpha.is_finite() && self.deepnorm_alpha > 0.0) {
            return Err(Error::config("deepnorm_alpha", self.deepnorm_alpha, "a positive number"));
        }
        if self.mask_token_id.is_none() && self.bos_token_id < 4 {
            return Err(Error::config("mask_token_id", "missing", "the id of [MASK]"));
        }
        only_plain(self.pre_seq_len, self.quantization_bit)
    }

    fn spec(&self) -> Spec {
        Spec {
            n_layers: self.num_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads.max(1),
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_sequence_length,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let (d, f, std) = (self.hidden_size, self.inner_hidden_size, self.initializer_range);
        let shape = deepnorm::Shape {
            spec: self.spec(),
            alpha: self.deepnorm_alpha as f32,
            eps: self.layernorm_epsilon,
            rule: self.prefix_rule(),
            rotation: Rotation::TextAndBlock(self.inverse_frequencies()),
            is_tied: self.tie_word_embeddings,
            std: WeightStd { input: std, attention_out: std },
        };
        deepnorm::build(p, shape, |mut p| {
            let mut linear = |name, n_in, n_out| {
                let shape = LinearShape::new(n_in, n_out).with_bias(true);
                Linear::build(&mut p.at(name), Role::Mlp, shape, std)
            };
            let up = linear("dense_h_to_4h", d, f)?;
            Ok(Mlp::Gelu { up, down: linear("dense_4h_to_h", f, d)? })
        })
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        let (head, embedding) = ("lm_head.weight", "transformer.word_embeddings.weight");
        Some(Tie { is_tied: &mut self.tie_word_embeddings, head, embedding })
    }

    fn fit_to(&mut self, has: &dyn Fn(&str) -> bool) {
        // Some tools store a shared tensor once and omit the head, which the published code ties.
        if has("transformer.word_embeddings.weight") && !has("lm_head.weight") {
            self.tie_word_embeddings = true;
        }
    }
}

impl ChatGlmConfig {
    fn inverse_frequencies(&self) -> Vec<f64> {
        // Each of the two positions rotates half of the head.
        let plain = frequencies::inverse_frequencies(10_000.0, self.spec().head_dim / 2);
        self.inv_freq_dtype.round(plain)
    }

    /// Returns the layout rule. In both kinds of text, `<sop>` and all later tokens stand at the
    /// mask token's position. If a text has both mask tokens, `[gMASK]` counts, as in version 1.1
    /// of the published code.
    fn prefix_rule(&self) -> PrefixRule {
        let below_bos = |n| self.bos_token_id.saturating_sub(n);
        let gmask = self.gmask_token_id.unwrap_or(below_bos(3));
        let mask = self.mask_token_id.unwrap_or(below_bos(4));
        PrefixRule {
            sop: self.bos_token_id,
            masks: vec![
                MaskToken { name: "[gMASK]", id: gmask, freezes: true },
                MaskToken { name: "[MASK]", id: mask, freezes: true },
            ],
            has_block_positions: true,
        }
    }
}
