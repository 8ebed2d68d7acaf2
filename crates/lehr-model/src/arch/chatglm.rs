//! ChatGLM-6B (THUDM 2023): LayerNorm whose output is also the residual ("DeepNorm"), a context
//! that all tokens see, RoPE in two dimensions, a GELU MLP. Weights are `[out, in]`.
//!
//! With `u = LN(x)`, a sub-layer gives `x' = α u + f(u)`: not `x` but the normalised `u` is carried
//! on. Wang et al. 2022, <https://arxiv.org/abs/2203.00555>, with the norm moved to the entry of
//! the next sub-layer.

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::attention::Mask;
use lehr_tensor::ops::rope::{RopeTable, frequencies};
use lehr_tensor::{Role, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::prefix::{MaskToken, PrefixRule};
use super::stack::{self, Stack};
use super::{Architecture, FamilyConfig, Layout, Pass, Residual, Spec, divides, positive};
use crate::nn::{Embedding, LayerBuilder, LayerNorm, Linear, LinearShape};
use crate::{Error, KvCache, Result};

/// The settings of a ChatGLM-6B `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatGlmConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub inner_hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest context.
    #[serde(default = "default_length")]
    pub max_sequence_length: usize,
    /// Added to the variance in every norm.
    #[serde(default = "default_eps")]
    pub layernorm_epsilon: f32,
    /// Whether tokens have two positions; no other kind has been published.
    #[serde(default = "yes")]
    pub position_encoding_2d: bool,
    /// α, by which the residual is multiplied: √(2 · 28) for the 28 layers of the published model.
    /// Its code takes this number for models of other depths too, so it is what absence means.
    #[serde(default = "default_alpha")]
    pub deepnorm_alpha: f64,
    /// How the inverse frequencies of the rotation are rounded: `float16` as in the published code,
    /// or `float32`.
    #[serde(default)]
    pub inv_freq_dtype: FrequencyDtype,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// Whether the head is the embedding. Checkpoints hold both under their own names; in the
    /// published one they are equal, so that it makes a difference in training only.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// `<sop>`: ends the context.
    pub bos_token_id: u32,
    /// `<eop>`: ends the answer.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
    /// `[MASK]`; absent means `bos_token_id` − 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_token_id: Option<u32>,
    /// `[gMASK]`; absent means `bos_token_id` − 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gmask_token_id: Option<u32>,
    /// Padding.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// Virtual tokens of a P-tuned checkpoint, which cannot be read yet.
    #[serde(default, skip_serializing)]
    pre_seq_len: Option<usize>,
    /// Bits of a quantised checkpoint, which cannot be read yet.
    #[serde(default, skip_serializing)]
    quantization_bit: Option<usize>,
}

/// To what inverse frequencies are rounded.
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

/// An error for the checkpoints of `THUDM` that hold something else than plain weights.
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
        // ChatGLM2 and 3 have the same model type.
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
        Ok(Box::new(Arc::new(ChatGlm::build(self, p)?)))
    }

    fn fit_to(&mut self, has: &dyn Fn(&str) -> bool) {
        // Tools that write a tensor once leave out the head, which the published code ties.
        if has("transformer.word_embeddings.weight") && !has("lm_head.weight") {
            self.tie_word_embeddings = true;
        }
    }
}

impl ChatGlmConfig {
    fn inverse_frequencies(&self) -> Vec<f64> {
        // Half of the head turns with each of the two positions.
        let plain = frequencies::inverse_frequencies(10_000.0, self.spec().head_dim / 2);
        self.inv_freq_dtype.round(plain)
    }

    /// In both kinds of text all from `<sop>` on stand at the mask token's position. Where there
    /// are both tokens `[gMASK]` counts, as in version 1.1 of the published code.
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

/// Attention whose `query_key_value` gives, head by head, the head's q, k and v.
pub(super) struct PerHeadAttention {
    query_key_value: Linear,
    dense: Linear,
}

impl PerHeadAttention {
    pub(super) fn build(mut p: LayerBuilder<'_>, d: usize, (qkv, out): (f32, f32)) -> Result<Self> {
        let mut linear = |name, (n_in, n_out), std| {
            let shape = LinearShape::new(n_in, n_out).with_bias(true);
            Linear::build(&mut p.at(name), Role::Attention, shape, std)
        };
        Ok(Self {
            query_key_value: linear("query_key_value", (d, 3 * d), qkv)?,
            dense: linear("dense", (d, d), out)?,
        })
    }

    /// The published code divides the scores of layer `l` by `l + 1` and multiplies them again, to
    /// stay in the range of 16-bit floats; that is nothing here.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        mask: &Mask,
        rope: &RopeTable,
        (n_heads, layer): (usize, usize),
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let (b, t, d) = (h.shape()[0], h.shape()[1], h.shape()[2]);
        let e = d / n_heads;
        let qkv = self.query_key_value.forward(h)?.reshape([b, t, n_heads, 3 * e])?;
        let part = |i: usize| qkv.slice(3, i * e..(i + 1) * e);
        let (q, k, v) = (part(0)?.rope(rope)?, part(1)?.rope(rope)?, part(2)?);
        let scale = 1.0 / (e as f32).sqrt();
        let a = match cache {
            None => q.attention(&k, &v, mask, scale)?,
            Some(cache) => {
                let (k, v) = cache.write(layer, &k, &v)?;
                q.attention(&k, &v, &cache.mask(mask.clone(), t), scale)?
            }
        };
        Ok(self.dense.forward(&a.reshape([b, t, d])?)?)
    }
}

struct Block {
    input_layernorm: LayerNorm,
    attention: PerHeadAttention,
    post_attention_layernorm: LayerNorm,
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
}

impl Block {
    fn build(config: &ChatGlmConfig, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, f, std) = (config.hidden_size, config.inner_hidden_size, config.initializer_range);
        let eps = config.layernorm_epsilon;
        let input_layernorm = LayerNorm::build(&mut p.at("input_layernorm"), d, eps)?;
        let attention = PerHeadAttention::build(p.at("attention"), d, (std, std))?;
        let post_attention_layernorm =
            LayerNorm::build(&mut p.at("post_attention_layernorm"), d, eps)?;
        let mut mlp = p.at("mlp");
        let mut linear = |name, (n_in, n_out)| {
            let shape = LinearShape::new(n_in, n_out).with_bias(true);
            Linear::build(&mut mlp.at(name), Role::Mlp, shape, std)
        };
        let dense_h_to_4h = linear("dense_h_to_4h", (d, f))?;
        let dense_4h_to_h = linear("dense_4h_to_h", (f, d))?;
        Ok(Self {
            input_layernorm,
            attention,
            post_attention_layernorm,
            dense_h_to_4h,
            dense_4h_to_h,
        })
    }
}

/// The ChatGLM-6B decoder.
pub struct ChatGlm {
    config: ChatGlmConfig,
    rule: PrefixRule,
    inv_freq: Vec<f64>,
    word_embeddings: Embedding,
    blocks: Vec<Block>,
    final_layernorm: LayerNorm,
    head: Linear,
}

impl ChatGlm {
    fn build(config: &ChatGlmConfig, p: &mut LayerBuilder<'_>) -> Result<Self> {
        let (d, v, std) = (config.hidden_size, config.vocab_size, config.initializer_range);
        let mut root = p.at("transformer");
        let word_embeddings =
            Embedding::build(&mut root.at("word_embeddings"), Role::TokenEmbedding, v, d, std)?;
        let mut blocks = Vec::new();
        for index in 0..config.num_layers {
            blocks.push(Block::build(config, root.at("layers").at(index))?);
        }
        let final_layernorm =
            LayerNorm::build(&mut root.at("final_layernorm"), d, config.layernorm_epsilon)?;
        let head = match config.tie_word_embeddings {
            true => Linear::tied(&mut p.at("lm_head"), &word_embeddings)?,
            false => Linear::build(&mut p.at("lm_head"), Role::Head, LinearShape::new(d, v), std)?,
        };
        let (rule, inv_freq) = (config.prefix_rule(), config.inverse_frequencies());
        let config = config.clone();
        Ok(Self { config, rule, inv_freq, word_embeddings, blocks, final_layernorm, head })
    }
}

impl Stack for ChatGlm {
    type Context = (Mask, RopeTable);

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, _: usize, x: &Tensor) -> Result<Tensor> {
        // The residual stream of DeepNorm is normed already.
        Ok(x.clone())
    }

    fn block(
        &self,
        index: usize,
        Residual { x, normed }: &Residual,
        (mask, rope): &Self::Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let block = &self.blocks[index];
        let (alpha, n_heads) = (self.config.deepnorm_alpha as f32, self.config.num_attention_heads);
        let a = block.attention.forward(normed, mask, rope, (n_heads, index), cache)?;
        let (_, u) = block.post_attention_layernorm.forward_add(&x.scale(alpha)?, &a)?;
        let (wide, narrow) = (&block.dense_h_to_4h, &block.dense_4h_to_h);
        let m = Linear::feed_forward(&u, wide, Activation::GeluTanh, narrow)?;
        let next_norm =
            self.blocks.get(index + 1).map_or(&self.final_layernorm, |next| &next.input_layernorm);
        let (_, u) = next_norm.forward_add(&u.scale(alpha)?, &m)?;
        Ok(Residual::already_normed(u))
    }
}

impl Architecture for Arc<ChatGlm> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        let block_positions = pass.check_two_streams(&self.config.spec())?;
        let tokens = pass.tokens;
        let rope = RopeTable::two_dimensional(&tokens.positions, block_positions, &self.inv_freq)?;
        let x = self.word_embeddings.forward(&tokens.ids)?;
        let u = self.blocks[0].input_layernorm.forward(&x)?;
        stack::run(self, u, &(tokens.causal_mask(), rope), pass)
    }

    fn head(&self) -> Option<&Linear> {
        Some(&self.head)
    }

    fn has_prefix(&self) -> bool {
        true
    }

    fn layout(&self, ids: &[i32]) -> Result<Layout> {
        self.rule.layout(ids)
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
