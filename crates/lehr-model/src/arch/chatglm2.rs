//! ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B as published by THUDM (2023, 2024): RMSNorm before each
//! sub-layer, RoPE on adjacent pairs of the first half of each head, grouped-query attention with
//! one matrix for q, k and v, a SwiGLU MLP with one matrix for gate and up. Weights are `[out,
//! in]`.

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable, frequencies};
use lehr_tensor::{OutputParts, Role, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attention::{Attention, AttentionContext, Qkv};
use super::chatglm::only_plain;
use super::stack::{self, Stack};
use super::{
    Architecture, FamilyConfig, Pass, Residual, Spec, Tie, divides, positive, residual_std,
};
use crate::nn::{
    Embedding, FusedGatedMlp, GateHalf, LayerBuilder, LayerNorm, Linear, LinearShape, RmsNorm,
};
use crate::{Error, KvCache, Result};

/// The settings of a ChatGLM2 `config.json`. Missing keys have the defaults of the published code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatGlm2Config {
    /// Number of token ids, including padding.
    pub padded_vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub ffn_hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Width of a head.
    #[serde(default = "default_kv_channels")]
    pub kv_channels: usize,
    /// Whether query heads share key-value heads. If not, `query_key_value` holds q, k and v of
    /// each head in turn, instead of all q, all k, all v.
    #[serde(default)]
    pub multi_query_attention: bool,
    /// Number of key-value heads, if they are shared.
    #[serde(default = "one")]
    pub multi_query_group_num: usize,
    /// Longest context.
    #[serde(default = "default_length")]
    pub seq_length: usize,
    /// Added to the mean square or variance in every norm.
    #[serde(default = "default_eps")]
    pub layernorm_epsilon: f32,
    /// Whether norms are `RMSNorm`; otherwise they are `LayerNorm`.
    #[serde(default = "yes")]
    pub rmsnorm: bool,
    /// Whether the residual is the output of a norm instead of its input.
    #[serde(default)]
    pub apply_residual_connection_post_layernorm: bool,
    /// Whether there is a norm after the last block.
    #[serde(default = "yes")]
    pub post_layer_norm: bool,
    /// Whether all projections have biases.
    #[serde(default)]
    pub add_bias_linear: bool,
    /// Whether `query_key_value` has a bias even if `add_bias_linear` is false.
    #[serde(default)]
    pub add_qkv_bias: bool,
    /// Factor of the base 10000 of the rotary frequencies.
    #[serde(default = "one_f64")]
    pub rope_ratio: f64,
    /// Whether the head is tied to the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, or a list of such tokens.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
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

fn default_kv_channels() -> usize {
    128
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
fn one() -> usize {
    1
}
fn one_f64() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

impl FamilyConfig for ChatGlm2Config {
    const MODEL_TYPE: &'static str = "chatglm";
    const CLASS: &'static str = "ChatGLMModel";

    fn recognises(json: &Value) -> bool {
        // ChatGLM-6B shares the model type.
        json.get("model_type").and_then(Value::as_str) == Some(Self::MODEL_TYPE)
            && json.get("padded_vocab_size").is_some()
    }

    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("padded_vocab_size", self.padded_vocab_size),
            ("hidden_size", self.hidden_size),
            ("ffn_hidden_size", self.ffn_hidden_size),
            ("num_layers", self.num_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("kv_channels", self.kv_channels),
            ("seq_length", self.seq_length),
        ] {
            positive(key, value)?;
        }
        let (groups, heads) = (self.spec().n_kv_heads, self.num_attention_heads);
        divides("multi_query_group_num", groups, "num_attention_heads", heads)?;
        if !self.kv_channels.is_multiple_of(4) {
            return Err(Error::config("kv_channels", self.kv_channels, "a multiple of 4"));
        }
        if !(self.rope_ratio.is_finite() && self.rope_ratio > 0.0) {
            return Err(Error::config("rope_ratio", self.rope_ratio, "a positive number"));
        }
        only_plain(self.pre_seq_len, self.quantization_bit)
    }

    fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_layers,
            n_heads,
            n_kv_heads: if self.multi_query_attention {
                self.multi_query_group_num
            } else {
                n_heads
            },
            head_dim: self.kv_channels,
            hidden_size: self.hidden_size,
            vocab_size: self.padded_vocab_size,
            max_positions: self.seq_length,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(Arc::new(ChatGlm2::build(self, p)?)))
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        // Files of the model without a head lack the prefix.
        let short = name.strip_prefix("transformer.").map(str::to_owned);
        [name.to_owned()].into_iter().chain(short).collect()
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        let head = "transformer.output_layer.weight";
        let embedding = "transformer.embedding.word_embeddings.weight";
        Some(Tie { is_tied: &mut self.tie_word_embeddings, head, embedding })
    }
}

impl ChatGlm2Config {
    fn inverse_frequencies(&self) -> Vec<f64> {
        // The checkpoint also stores them as 16-bit floats, but the published code recomputes them.
        frequencies::inverse_frequencies(10_000.0 * self.rope_ratio, self.kv_channels / 2)
    }
}

/// A norm of the kind that the settings select.
enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    fn build(config: &ChatGlm2Config, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, eps) = (config.hidden_size, config.layernorm_epsilon);
        Ok(match config.rmsnorm {
            true => Self::Rms(RmsNorm::build(&mut p, d, eps)?),
            false => Self::Layer(LayerNorm::build(&mut p, d, eps)?),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Rms(norm) => norm.forward(x)?,
            Self::Layer(norm) => norm.forward(x)?,
        })
    }

    /// Computes `(x + delta, norm(x + delta))`.
    fn forward_add(&self, x: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(match self {
            Self::Rms(norm) => norm.forward_add(x, delta)?,
            Self::Layer(norm) => norm.forward_add(x, delta)?,
        })
    }
}

struct Block {
    input_layernorm: Norm,
    attention: Attention,
    /// Whether `query_key_value` holds all queries, all keys, all values; otherwise it holds q, k
    /// and v of each head in turn.
    is_grouped: bool,
    query_key_value: Linear,
    dense: Linear,
    post_attention_layernorm: Norm,
    mlp: FusedGatedMlp,
}

impl Block {
    fn build(config: &ChatGlm2Config, layer: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, f, std) = (config.hidden_size, config.ffn_hidden_size, config.initializer_range);
        let (spec, bias) = (config.spec(), config.add_bias_linear);
        let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
        let residual_std = residual_std(std, spec.n_layers);
        let input_layernorm = Norm::build(config, p.at("input_layernorm"))?;
        let mut attn = p.at("self_attention");
        let qkv = LinearShape::new(d, q + 2 * kv).with_bias(bias || config.add_qkv_bias);
        let qkv = qkv.with_parts(match config.multi_query_attention {
            true => OutputParts::Qkv { q, kv },
            false => OutputParts::QkvByHead { head_dim: spec.head_dim },
        });
        let role = Role::Attention;
        let query_key_value = Linear::build(&mut attn.at("query_key_value"), role, qkv, std)?;
        let out = LinearShape::new(q, d).with_bias(bias);
        let dense = Linear::build(&mut attn.at("dense"), role, out, residual_std)?;
        let post_attention_layernorm = Norm::build(config, p.at("post_attention_layernorm"))?;
        let mut mlp = p.at("mlp");
        let mut linear = |name, shape: LinearShape, std| {
            Linear::build(&mut mlp.at(name), Role::Mlp, shape.with_bias(bias), std)
        };
        let halves = OutputParts::Halves;
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        Ok(Self {
            input_layernorm,
            attention: Attention::new(&spec, layer).with_scale(scale),
            is_grouped: config.multi_query_attention,
            query_key_value,
            dense,
            post_attention_layernorm,
            mlp: FusedGatedMlp {
                gate_up: linear(
                    "dense_h_to_4h",
                    LinearShape::new(d, 2 * f).with_parts(halves),
                    std,
                )?,
                down: linear("dense_4h_to_h", LinearShape::new(f, d), residual_std)?,
                activation: Activation::Silu,
                gate: GateHalf::First,
            },
        })
    }

    fn attention(
        &self,
        x: &Tensor,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let qkv = self.query_key_value.forward(x)?;
        let Qkv { q, k, v } = match self.is_grouped {
            true => self.attention.split(&qkv)?,
            false => self.attention.split_by_head(&qkv)?,
        };
        let qkv = Qkv { q: q.rope(&context.rope)?, k: k.rope(&context.rope)?, v };
        Ok(self.dense.forward(&self.attention.forward(&qkv, &context.attention, cache)?)?)
    }
}

/// Input shared by all blocks.
#[derive(Clone)]
pub(super) struct Context {
    attention: AttentionContext,
    rope: RopeTable,
}

/// The ChatGLM2 decoder: `h = r(x) + Attention(norm₁(x)); y = r(h) + MLP(norm₂(h))`. `r` is the
/// identity or, with `apply_residual_connection_post_layernorm`, the norm beside it.
pub struct ChatGlm2 {
    config: ChatGlm2Config,
    inv_freq: Vec<f64>,
    word_embeddings: Embedding,
    blocks: Vec<Block>,
    final_layernorm: Option<Norm>,
    head: Option<Linear>,
}

impl ChatGlm2 {
    fn build(config: &ChatGlm2Config, p: &mut LayerBuilder<'_>) -> Result<Self> {
        let (d, vocab, std) =
            (config.hidden_size, config.padded_vocab_size, config.initializer_range);
        let mut root = p.at("transformer");
        let mut embedding = root.at("embedding");
        let role = Role::TokenEmbedding;
        let word_embeddings =
            Embedding::build(&mut embedding.at("word_embeddings"), role, vocab, d, std)?;
        let mut encoder = root.at("encoder");
        let mut blocks = Vec::new();
        for index in 0..config.num_layers {
            blocks.push(Block::build(config, index, encoder.at("layers").at(index))?);
        }
        let final_layernorm = match config.post_layer_norm {
            true => Some(Norm::build(config, encoder.at("final_layernorm"))?),
            false => None,
        };
        let is_tied = config.tie_word_embeddings;
        let head = Linear::head(&mut root.at("output_layer"), &word_embeddings, is_tied, std)?;
        let inv_freq = config.inverse_frequencies();
        let config = config.clone();
        Ok(Self { config, inv_freq, word_embeddings, blocks, final_layernorm, head })
    }
}

impl Stack for ChatGlm2 {
    type Context = Context;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        self.blocks[index].input_layernorm.forward(x)
    }

    fn block(
        &self,
        index: usize,
        Residual { x, normed }: &Residual,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let block = &self.blocks[index];
        // Selects the residual from a norm's input x and output h.
        let carried = |x: &Tensor, h: &Tensor| {
            if self.config.apply_residual_connection_post_layernorm { h.clone() } else { x.clone() }
        };
        let a = block.attention(normed, context, cache)?;
        let (x, h) = block.post_attention_layernorm.forward_add(&carried(x, normed), &a)?;
        let m = block.mlp.forward(&h)?;
        let next_norm = self.blocks.get(index + 1).map(|next| &next.input_layernorm);
        match next_norm.or(self.final_layernorm.as_ref()) {
            Some(norm) => {
                let (x, normed) = norm.forward_add(&carried(&x, &h), &m)?;
                Ok(Residual { x, normed })
            }
            None => {
                let x = carried(&x, &h).add(&m)?;
                Ok(Residual::already_normed(x))
            }
        }
    }
}

impl Architecture for Arc<ChatGlm2> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        pass.check(&self.config.spec())?;
        let tokens = pass.tokens;
        let layout = RopeLayout::AdjacentPairs;
        let rope = RopeTable::new(&tokens.positions, &self.inv_freq, layout, 1.0)?;
        let x = self.word_embeddings.forward(&tokens.ids)?;
        let context = Context { attention: AttentionContext::causal(&pass)?, rope };
        stack::run(self, x, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
