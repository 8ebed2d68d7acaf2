//! GLM-130B (Zeng et al. 2022, <https://arxiv.org/abs/2210.02414>): LayerNorm whose output is also
//! the residual ("DeepNorm"), a bidirectional context, RoPE over the whole head, a GeGLU MLP, a
//! head tied to the embedding. Weights are `[out, in]`. `deepnorm.rs` gives the equations of a
//! block.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::rope::frequencies;
use lehr_tensor::{OutputParts, Role};
use serde::{Deserialize, Serialize};

use super::deepnorm::{self, Mlp, Rotation, WeightStd};
use super::prefix::{MaskToken, PrefixRule};
use super::{Architecture, FamilyConfig, Spec, divides, positive};
use crate::io::ShardRule;
use crate::nn::{FusedGatedMlp, GateHalf, LayerBuilder, Linear, LinearShape};
use crate::{Error, Result};

/// The settings of GLM-130B. Its checkpoint has no `config.json`. This format is lehr's own, with
/// the key names of ChatGLM-6B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Glm130bConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP, of each of its two halves.
    pub inner_hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Longest context.
    pub max_sequence_length: usize,
    /// Added to the variance in every norm.
    #[serde(default = "default_eps")]
    pub layernorm_epsilon: f32,
    /// α, the factor of the residual. The default is √(2 · `num_layers`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deepnorm_alpha: Option<f64>,
    /// Standard deviation of new embeddings and of `query_key_value`.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// `[MASK]`.
    #[serde(default = "default_mask")]
    pub mask_token_id: u32,
    /// `[gMASK]`.
    #[serde(default = "default_gmask")]
    pub gmask_token_id: u32,
    /// `[sMASK]`.
    #[serde(default = "default_smask")]
    pub smask_token_id: u32,
    /// `<sop>`, which ends the context.
    #[serde(default = "default_sop")]
    pub sop_token_id: u32,
    /// `<eop>`, which ends the answer.
    #[serde(default = "default_eop")]
    pub eop_token_id: u32,
    /// `eod`, which ends the document and the answer.
    #[serde(default = "default_eod")]
    pub eod_token_id: u32,
}

// The published model.
fn default_eps() -> f32 {
    1e-5
}
fn default_std() -> f32 {
    0.0052
}
fn default_mask() -> u32 {
    150_000
}
fn default_gmask() -> u32 {
    150_001
}
fn default_smask() -> u32 {
    150_002
}
fn default_eod() -> u32 {
    150_003
}
fn default_sop() -> u32 {
    150_004
}
fn default_eop() -> u32 {
    150_005
}

impl FamilyConfig for Glm130bConfig {
    const MODEL_TYPE: &'static str = "glm130b";
    const CLASS: &'static str = "GLM130B";

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
        if !self.spec().head_dim.is_multiple_of(2) {
            let expected = "hidden_size divided by an even number, the width of a head";
            return Err(Error::config("num_attention_heads", self.num_attention_heads, expected));
        }
        if !(self.alpha().is_finite() && self.alpha() > 0.0) {
            return Err(Error::config("deepnorm_alpha", self.alpha(), "a positive number"));
        }
        for (key, id) in [
            ("mask_token_id", self.mask_token_id),
            ("gmask_token_id", self.gmask_token_id),
            ("smask_token_id", self.smask_token_id),
            ("sop_token_id", self.sop_token_id),
        ] {
            if id as usize >= self.vocab_size {
                return Err(Error::config(key, id, format!("below {}", self.vocab_size)));
            }
        }
        Ok(())
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
        let (d, f) = (self.hidden_size, self.inner_hidden_size);
        let (spec, std) = (self.spec(), |n_in, n_out| self.deepnorm_std(n_in, n_out));
        let inv_freq = frequencies::inverse_frequencies(10_000.0, spec.head_dim);
        let shape = deepnorm::Shape {
            spec,
            alpha: self.alpha(),
            eps: self.layernorm_epsilon,
            rule: self.prefix_rule(),
            rotation: Rotation::Text(inv_freq),
            is_tied: true,
            std: WeightStd { input: self.initializer_range, attention_out: std(d, d) },
        };
        deepnorm::build(p, shape, |mut p| {
            let mut linear = |name, n_in, n_out, std| {
                let parts = match name {
                    "dense_h_to_4h" => OutputParts::Halves,
                    _ => OutputParts::Whole,
                };
                let shape = LinearShape::new(n_in, n_out).with_bias(true).with_parts(parts);
                Linear::build(&mut p.at(name), Role::Mlp, shape, std)
            };
            Ok(Mlp::GeGlu(FusedGatedMlp {
                gate_up: linear("dense_h_to_4h", d, 2 * f, std(d, f))?,
                down: linear("dense_4h_to_h", f, d, std(f, d))?,
                activation: Activation::GeluErf,
                gate: GateHalf::Second,
            }))
        })
    }

    /// Returns how a tensor was split. The published checkpoint has 8 parts, cut for tensor
    /// parallelism as Megatron does.
    fn shard_rule(&self, name: &str) -> ShardRule {
        let ends = |end: &str| name.ends_with(end);
        if ends("word_embeddings.weight") || name.contains(".query_key_value.") {
            // Rows of the vocabulary; whole heads, each with its q, k and v.
            return ShardRule::Rows;
        }
        if name.contains(".dense_h_to_4h.") {
            // Each part has a piece of both halves.
            return ShardRule::RowsOfHalves;
        }
        if ends(".dense.weight") || ends(".dense_4h_to_h.weight") {
            return ShardRule::Columns;
        }
        ShardRule::Replicated
    }
}

impl Glm130bConfig {
    fn alpha(&self) -> f32 {
        self.deepnorm_alpha.unwrap_or((2.0 * self.num_layers as f64).sqrt()) as f32
    }

    /// Returns the layout rule. A continuation for `[MASK]` or `[sMASK]` stands at the mask token's
    /// position. After `[gMASK]`, positions count up.
    fn prefix_rule(&self) -> PrefixRule {
        let mask = |name, id, freezes| MaskToken { name, id, freezes };
        PrefixRule {
            sop: self.sop_token_id,
            masks: vec![
                mask("[MASK]", self.mask_token_id, true),
                mask("[sMASK]", self.smask_token_id, true),
                mask("[gMASK]", self.gmask_token_id, false),
            ],
            has_block_positions: false,
        }
    }

    /// Returns Xavier's standard deviation times DeepNorm's gain β = 1/√(2 · `num_layers`).
    fn deepnorm_std(&self, n_in: usize, n_out: usize) -> f32 {
        let xavier = (2.0 / (n_in + n_out) as f32).sqrt();
        xavier / (2.0 * self.num_layers as f32).sqrt()
    }
}
