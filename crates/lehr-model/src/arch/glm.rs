//! GLM-4-9B (GLM team 2024) in the format of transformers: RoPE on adjacent pairs of the first part
//! of each head, RMSNorm before each sub-layer, grouped-query attention with biases on q, k and v,
//! a SwiGLU MLP with one matrix for gate and up. Weights are `[out, in]`.

use lehr_tensor::ops::rope::RopeLayout;
use lehr_tensor::{OutputParts, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::prenorm::{AttentionSettings, GroupedQueryAttention, Mlp, Norms, PreNormBlock};
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, RopeConfig, Spec, Tie, activation, check_spec, residual_std,
    with_and_without_prefix,
};
use crate::nn::{FusedGatedMlp, GateHalf, LayerBuilder, Linear, LinearShape};
use crate::{Error, Result};

/// The settings of a GLM-4 `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GlmConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key-value heads.
    #[serde(default = "default_kv_heads")]
    pub num_key_value_heads: usize,
    /// Width of a head.
    #[serde(default = "default_head_dim")]
    pub head_dim: usize,
    /// Longest context.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f32,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// Whether the head is tied to the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    #[serde(default = "yes")]
    pub attention_bias: bool,
    /// The MLP's activation: `silu`, or a GELU for a GeGLU MLP.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Rotary settings. By default half of each head is rotated.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, or a list of such tokens.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
}

fn default_kv_heads() -> usize {
    2
}
fn default_head_dim() -> usize {
    128
}
fn default_positions() -> usize {
    131_072
}
fn default_eps() -> f32 {
    1.5625e-7
}
fn default_std() -> f32 {
    0.02
}
fn default_activation() -> String {
    "silu".to_owned()
}
fn yes() -> bool {
    true
}

impl FamilyConfig for GlmConfig {
    const MODEL_TYPE: &'static str = "glm";
    const CLASS: &'static str = "GlmForCausalLM";

    fn validate(&self) -> Result<()> {
        check_spec(&self.spec(), self.intermediate_size)?;
        activation("hidden_act", &self.hidden_act)?;
        self.rope().map(drop)
    }

    fn spec(&self) -> Spec {
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let (d, norms) = (self.hidden_size, Norms::new(self.rms_norm_eps));
        decoder::build(p, self.shape()?, |layer, mut p| {
            let mut norm = |name| norms.build(&mut p.at(name), d);
            Ok(PreNormBlock {
                input_layernorm: norm("input_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                attention: self.attention(layer, p.at("self_attn"))?,
                mlp: self.mlp(p.at("mlp"))?,
            })
        })
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        Tie::of_decoder(&mut self.tie_word_embeddings)
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        with_and_without_prefix(name)
    }
}

impl GlmConfig {
    /// Returns the frequencies of the rotation.
    pub(super) fn rope(&self) -> Result<Rope> {
        let (settings, part) = self.rope.settings_of_part(self.max_position_embeddings, 0.5)?;
        let rotary_dim = (self.head_dim as f64 * part) as usize;
        if !(0.0..=1.0).contains(&part) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let expected = format!("a part of head_dim = {} of even width", self.head_dim);
            return Err(Error::config("partial_rotary_factor", part, expected));
        }
        Rope::new(&settings, rotary_dim)
    }

    /// Returns the choices of the decoder outside its blocks.
    pub(super) fn shape(&self) -> Result<decoder::Shape> {
        let norms = Norms::new(self.rms_norm_eps);
        Ok(decoder::Shape {
            rope_layout: RopeLayout::AdjacentPairs,
            is_tied: self.tie_word_embeddings,
            ..decoder::Shape::new(self.spec(), self.rope()?, norms, self.initializer_range)
        })
    }

    /// Builds the attention of block `layer`.
    pub(super) fn attention(
        &self,
        layer: usize,
        p: LayerBuilder<'_>,
    ) -> Result<GroupedQueryAttention> {
        let settings = AttentionSettings {
            qkv_bias: self.attention_bias,
            ..AttentionSettings::new(self.spec(), self.initializer_range)
        };
        GroupedQueryAttention::build(p, layer, &settings)
    }

    /// Builds the gated MLP of a block. `gate_up_proj` holds the gate first.
    pub(super) fn mlp(&self, mut p: LayerBuilder<'_>) -> Result<Mlp> {
        let (d, f, std) = (self.hidden_size, self.intermediate_size, self.initializer_range);
        let wide = LinearShape::new(d, 2 * f).with_parts(OutputParts::Halves);
        let down = LinearShape::new(f, d);
        let down_std = residual_std(std, self.num_hidden_layers);
        Ok(Mlp::Fused(FusedGatedMlp {
            gate_up: Linear::build(&mut p.at("gate_up_proj"), Role::Mlp, wide, std)?,
            down: Linear::build(&mut p.at("down_proj"), Role::Mlp, down, down_std)?,
            activation: activation("hidden_act", &self.hidden_act)?,
            gate: GateHalf::First,
        }))
    }
}
