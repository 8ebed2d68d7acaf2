//! GLM-4-9B (GLM team 2024) as transformers names it: RoPE on adjacent pairs of the first part of
//! each head, RMSNorm before each sub-layer, grouped-query attention with biases on q, k and v, a
//! SwiGLU MLP whose gate and up matrix are one. Weights are `[out, in]`.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{Role, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::heads::Heads;
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, Residual, RopeConfig, Spec, Tokens, activation, check_spec,
    residual_std,
};
use crate::nn::{LayerBuilder, Linear, LinearShape, RmsNorm};
use crate::{Error, KvCache, Result};

/// The settings of a GLM-4 `config.json`; what a file leaves out is as in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GlmConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads.
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
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    #[serde(default = "yes")]
    pub attention_bias: bool,
    /// The MLP's activation: `silu`, or a GELU for a GeGLU MLP.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// How heads are rotated; unless it says another part, half of each head is.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Last token of a text, or several of which any ends it.
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
        let shape = decoder::Shape {
            spec: self.spec(),
            rope: self.rope()?,
            rope_layout: RopeLayout::AdjacentPairs,
            rms_norm_eps: self.rms_norm_eps,
            std: self.initializer_range,
            is_tied: self.tie_word_embeddings,
        };
        decoder::build(p, shape, |index, p| Block::build(self, index, p))
    }
}

impl GlmConfig {
    /// The frequencies of the rotation.
    pub(super) fn rope(&self) -> Result<Rope> {
        let (settings, part) = self.rope.settings_of_part(self.max_position_embeddings, 0.5)?;
        let rotary_dim = (self.head_dim as f64 * part) as usize;
        if !(0.0..=1.0).contains(&part) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let expected = format!("a part of head_dim = {} of even width", self.head_dim);
            return Err(Error::config("partial_rotary_factor", part, expected));
        }
        Rope::new(&settings, rotary_dim)
    }
}

/// The attention of GLM-4.
pub(super) struct Attention {
    heads: Heads,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
}

impl Attention {
    pub(super) fn build(config: &GlmConfig, layer: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, std, spec) = (config.hidden_size, config.initializer_range, config.spec());
        let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
        let (bias, out_std) = (config.attention_bias, residual_std(std, spec.n_layers));
        let mut project = |name, (n_in, n_out), bias, std| {
            let shape = LinearShape::new(n_in, n_out).with_bias(bias);
            Linear::build(&mut p.at(name), Role::Attention, shape, std)
        };
        Ok(Self {
            heads: Heads::new(&spec, layer),
            q_proj: project("q_proj", (d, q), bias, std)?,
            k_proj: project("k_proj", (d, kv), bias, std)?,
            v_proj: project("v_proj", (d, kv), bias, std)?,
            o_proj: project("o_proj", (q, d), false, out_std)?,
        })
    }

    pub(super) fn forward(
        &self,
        h: &Tensor,
        tokens: &Tokens,
        rope: &RopeTable,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let q = self.heads.queries(&self.q_proj.forward(h)?)?.rope(rope)?;
        let k = self.heads.keys(&self.k_proj.forward(h)?)?.rope(rope)?;
        let v = self.heads.keys(&self.v_proj.forward(h)?)?;
        Ok(self.o_proj.forward(&self.heads.attend(&q, (&k, &v), tokens, cache)?)?)
    }
}

/// The gated MLP of GLM-4: `gate_up_proj` gives the gate, then what it gates.
pub(super) struct Mlp {
    gate_up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    pub(super) fn build(config: &GlmConfig, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, f, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let (wide, down) = (LinearShape::new(d, 2 * f), LinearShape::new(f, d));
        let down_std = residual_std(std, config.num_hidden_layers);
        Ok(Self {
            gate_up_proj: Linear::build(&mut p.at("gate_up_proj"), Role::Mlp, wide, std)?,
            down_proj: Linear::build(&mut p.at("down_proj"), Role::Mlp, down, down_std)?,
            activation: activation("hidden_act", &config.hidden_act)?,
        })
    }

    pub(super) fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let both = self.gate_up_proj.forward(h)?;
        let f = both.shape()[2] / 2;
        let (gate, up) = (both.slice(2, 0..f)?, both.slice(2, f..2 * f)?);
        Ok(self.down_proj.forward_gated(&gate, &up, self.activation)?)
    }
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn build(config: &GlmConfig, layer: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        let mut norm = |name| RmsNorm::build(&mut p.at(name), d, eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            self_attn: Attention::build(config, layer, p.at("self_attn"))?,
            mlp: Mlp::build(config, p.at("mlp"))?,
        })
    }
}

impl decoder::Block for Block {
    fn input_layernorm(&self) -> &RmsNorm {
        &self.input_layernorm
    }

    fn forward(
        &self,
        Residual { x, normed }: &Residual,
        (tokens, rope): &decoder::Context,
        next_norm: &RmsNorm,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let a = self.self_attn.forward(normed, tokens, rope, cache)?;
        let (x, h) = self.post_attention_layernorm.forward_add(x, &a)?;
        let m = self.mlp.forward(&h)?;
        let (x, normed) = next_norm.forward_add(&x, &m)?;
        Ok(Residual { x, normed })
    }
}
