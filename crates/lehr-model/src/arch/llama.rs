//! Llama 2 and 3 (Touvron et al. 2023; Llama team 2024): RoPE, RMSNorm before each sub-layer,
//! grouped-query attention, a SwiGLU MLP. Weights are `[out, in]`.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::linear::WeightLayout::OutIn;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable, frequencies};
use lehr_tensor::{ParamBuilder, Tensor, no_grad};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CausalLm, Spec, Tokens, check_room, divides, positive};
use crate::nn::{Embedding, Linear, RmsNorm};
use crate::{Error, KvCache, Result};

/// The settings of a Llama `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
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
    /// Key-value heads; absent means as many as query heads.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; absent means `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Longest context.
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
    /// Whether the attention's projections have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// The MLP's activation: `silu`, or a GELU for a GeGLU MLP.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Base of the rotary frequencies (transformers 4; newer files say it in `rope_parameters`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies (transformers 4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// Base and scaling of the rotary frequencies (transformers 5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Last token of a text, or several of which any ends it.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
}

fn default_activation() -> String {
    "silu".to_owned()
}
fn default_eps() -> f32 {
    1e-6
}
fn default_std() -> f32 {
    0.02
}

/// How rotary frequencies are stretched beyond the context of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies by the factor, high ones not, with a ramp between (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths beyond `original / low` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Context of pre-training.
        original_max_positions: f64,
    },
}

impl LlamaConfig {
    pub(super) fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            positive(key, value)?;
        }
        if self.head_dim.is_none() {
            let (key, heads) = ("num_attention_heads", self.num_attention_heads);
            divides(key, heads, "hidden_size", self.hidden_size)?;
        }
        let kv_heads = self.n_kv_heads();
        divides("num_key_value_heads", kv_heads, "num_attention_heads", self.num_attention_heads)?;
        if !self.spec().head_dim.is_multiple_of(2) {
            return Err(Error::config("head_dim", self.spec().head_dim, "an even number"));
        }
        self.activation()?;
        self.rope().map(drop)
    }

    fn n_kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::GeluErf),
            other => Err(Error::config("hidden_act", other, "silu, gelu or gelu_pytorch_tanh")),
        }
    }

    /// Base and scaling of the rotary frequencies, from wherever this file says them.
    ///
    /// # Errors
    /// If the kind of scaling is not known or lacks a number.
    pub fn rope(&self) -> Result<(f64, RopeScaling)> {
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let get = |key: &str| parameters.and_then(|p| p.get(key)).and_then(Value::as_f64);
        let need = |key: &str| {
            get(key).filter(|v| *v > 0.0).ok_or_else(|| {
                Error::config(&format!("rope_parameters.{key}"), "missing", "a positive number")
            })
        };
        let theta = get("rope_theta").or(self.rope_theta).unwrap_or(10_000.0);
        let kind = parameters.and_then(|p| p.get("rope_type").or_else(|| p.get("type")));
        let scaling = match kind.and_then(Value::as_str) {
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: need("factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_positions: need("original_max_position_embeddings")?,
            },
            Some(other) => {
                return Err(Error::config("rope_type", other, "default, linear or llama3"));
            }
        };
        Ok((theta, scaling))
    }

    fn inverse_frequencies(&self) -> Result<Vec<f64>> {
        let (theta, scaling) = self.rope()?;
        let plain = frequencies::inverse_frequencies(theta, self.spec().head_dim);
        Ok(match scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => frequencies::linear_scaled(&plain, factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => frequencies::llama3_scaled(
                &plain,
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            ),
        })
    }

    pub(super) fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads,
            n_kv_heads: self.n_kv_heads(),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / n_heads.max(1)),
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }
}

struct Block {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Block {
    fn build(config: &LlamaConfig, mut p: ParamBuilder<'_>) -> Result<Self> {
        let (d, f, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let spec = config.spec();
        let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
        // Each block adds twice to the residual stream; its variance at the end stays that of one.
        let residual_std = std / (2.0 * spec.n_layers as f32).sqrt();
        let eps = config.rms_norm_eps;
        let input_layernorm = RmsNorm::build(&mut p.at("input_layernorm"), d, eps)?;
        let mut attn = p.at("self_attn");
        let mut project = |name, size, std| {
            Linear::build(&mut attn.at(name), OutIn, size, config.attention_bias, std)
        };
        let q_proj = project("q_proj", (d, q), std)?;
        let k_proj = project("k_proj", (d, kv), std)?;
        let v_proj = project("v_proj", (d, kv), std)?;
        let o_proj = project("o_proj", (q, d), residual_std)?;
        let post_attention_layernorm =
            RmsNorm::build(&mut p.at("post_attention_layernorm"), d, eps)?;
        let mut mlp = p.at("mlp");
        let mut project =
            |name, size, std| Linear::build(&mut mlp.at(name), OutIn, size, config.mlp_bias, std);
        Ok(Self {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm,
            gate_proj: project("gate_proj", (d, f), std)?,
            up_proj: project("up_proj", (d, f), std)?,
            down_proj: project("down_proj", (f, d), residual_std)?,
        })
    }

    fn attention(
        &self,
        h: &Tensor,
        tokens: &Tokens,
        rope: &RopeTable,
        (spec, layer): (&Spec, usize),
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (b, t, e) = (h.shape()[0], h.shape()[1], spec.head_dim);
        let heads = |x: Tensor, n_heads: usize| x.reshape([b, t, n_heads, e]);
        let q = heads(self.q_proj.forward(h)?, spec.n_heads)?.rope(rope)?;
        let k = heads(self.k_proj.forward(h)?, spec.n_kv_heads)?.rope(rope)?;
        let v = heads(self.v_proj.forward(h)?, spec.n_kv_heads)?;
        let (mask, scale) = (tokens.causal_mask(), 1.0 / (e as f32).sqrt());
        let a = match cache {
            None => q.attention(&k, &v, &mask, scale)?,
            Some(cache) => {
                let (k, v) = cache.write(layer, &k, &v);
                q.attention(&k, &v, &mask.with_n_keys(cache.len() + t), scale)?
            }
        };
        Ok(self.o_proj.forward(&a.reshape([b, t, spec.n_heads * e])?)?)
    }

    fn mlp(&self, h: &Tensor, activation: Activation) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(h)?, self.up_proj.forward(h)?);
        Ok(self.down_proj.forward_gated(&gate, &up, activation)?)
    }
}

/// The Llama decoder.
pub struct Llama {
    config: LlamaConfig,
    activation: Activation,
    inv_freq: Vec<f64>,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Llama {
    pub(super) fn build(config: &LlamaConfig, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let (d, std) = (config.hidden_size, config.initializer_range);
        let mut root = p.at("model");
        let embed_tokens =
            Embedding::build(&mut root.at("embed_tokens"), config.vocab_size, d, std)?;
        let mut blocks = Vec::new();
        for index in 0..config.num_hidden_layers {
            blocks.push(Block::build(config, root.at("layers").at(index))?);
        }
        let norm = RmsNorm::build(&mut root.at("norm"), d, config.rms_norm_eps)?;
        let head = match config.tie_word_embeddings {
            true => Linear::tied(embed_tokens.weight()),
            false => {
                let size = (d, config.vocab_size);
                Linear::build(&mut p.at("lm_head"), OutIn, size, false, std)?
            }
        };
        let (activation, inv_freq) = (config.activation()?, config.inverse_frequencies()?);
        Ok(Self { config: config.clone(), activation, inv_freq, embed_tokens, blocks, norm, head })
    }

    fn forward(&self, tokens: &Tokens, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let spec = self.spec();
        check_room(tokens, cache.as_deref(), &spec)?;
        let rope = RopeTable::new(&tokens.positions, &self.inv_freq, RopeLayout::HalfSplit, 1.0)?;
        let mut x = self.embed_tokens.forward(&tokens.ids)?;
        let mut h = self.blocks[0].input_layernorm.forward(&x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let a = block.attention(&h, tokens, &rope, (&spec, i), cache.as_deref_mut())?;
            (x, h) = block.post_attention_layernorm.forward_add(&x, &a)?;
            let m = block.mlp(&h, self.activation)?;
            let next_norm = self.blocks.get(i + 1).map_or(&self.norm, |next| &next.input_layernorm);
            (x, h) = next_norm.forward_add(&x, &m)?;
        }
        if let Some(cache) = cache {
            cache.advance(tokens.len());
        }
        Ok(h)
    }
}

impl CausalLm for Llama {
    fn hidden(&self, tokens: &Tokens, cache: Option<&mut KvCache>) -> Result<Tensor> {
        match cache {
            None => self.forward(tokens, None),
            Some(cache) => no_grad(|| self.forward(tokens, Some(cache))),
        }
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
