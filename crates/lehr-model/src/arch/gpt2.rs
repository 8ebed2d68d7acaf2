//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each sub-layer, fused qkv,
//! a GELU MLP, a head tied to the embedding. Weights are `[in, out]`.

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::{OutputParts, Role, Tensor};
use serde::{Deserialize, Serialize};

use super::attention::{Attention, AttentionContext};
use super::stack::{self, Stack};
use super::{
    Architecture, FamilyConfig, Pass, Residual, Spec, Tie, divides, positive, residual_std,
};
use crate::nn::{Embedding, LayerBuilder, LayerNorm, Linear, LinearShape};
use crate::{Error, KvCache, Result};

/// The settings of a GPT-2 `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest context.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Number of heads.
    pub n_head: usize,
    /// Inner width of the MLP. The default is four times `n_embd`.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// The MLP's activation: `gelu_new`, `gelu`, `relu` or `silu`.
    #[serde(default = "default_activation")]
    pub activation_function: String,
    /// Added to the variance in every norm.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f32,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// Whether scores are divided by √E.
    #[serde(default = "yes")]
    pub scale_attn_weights: bool,
    /// Whether the scores of block i are also divided by i + 1.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head is tied to the embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Last token of a text.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
}

fn default_activation() -> String {
    "gelu_new".to_owned()
}
fn default_eps() -> f32 {
    1e-5
}
fn default_std() -> f32 {
    0.02
}
fn yes() -> bool {
    true
}

impl FamilyConfig for Gpt2Config {
    const MODEL_TYPE: &'static str = "gpt2";
    const CLASS: &'static str = "GPT2LMHeadModel";

    fn validate(&self) -> Result<()> {
        positive("vocab_size", self.vocab_size)?;
        positive("n_positions", self.n_positions)?;
        positive("n_layer", self.n_layer)?;
        positive("n_embd", self.n_embd)?;
        divides("n_head", self.n_head, "n_embd", self.n_embd)?;
        self.activation().map(drop)
    }

    fn spec(&self) -> Spec {
        Spec {
            n_layers: self.n_layer,
            n_heads: self.n_head,
            n_kv_heads: self.n_head,
            head_dim: self.n_embd / self.n_head.max(1),
            hidden_size: self.n_embd,
            vocab_size: self.vocab_size,
            max_positions: self.n_positions,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(Arc::new(Gpt2::build(self, p)?)))
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        let (head, embedding) = ("lm_head.weight", "transformer.wte.weight");
        Some(Tie { is_tied: &mut self.tie_word_embeddings, head, embedding })
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        // The first GPT-2 files lack the prefix.
        let short = name.strip_prefix("transformer.").unwrap_or(name);
        vec![name.to_owned(), short.to_owned()]
    }
}

impl Gpt2Config {
    fn activation(&self) -> Result<Activation> {
        match self.activation_function.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::GeluErf),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => {
                Err(Error::config("activation_function", other, "gelu_new, gelu, relu or silu"))
            }
        }
    }
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    mlp_c_proj: Linear,
    attention: Attention,
}

impl Block {
    fn build(config: &Gpt2Config, index: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, eps, std) = (config.n_embd, config.layer_norm_epsilon, config.initializer_range);
        let inner = config.n_inner.unwrap_or(4 * d);
        let residual_std = residual_std(std, config.n_layer);
        let mut scale = 1.0;
        if config.scale_attn_weights {
            scale /= ((d / config.n_head) as f32).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (index + 1) as f32;
        }
        let linear = |mut p: LayerBuilder<'_>, role, shape: LinearShape, std| {
            Linear::build(&mut p, role, shape.transposed().with_bias(true), std)
        };
        let shape = LinearShape::new;
        let qkv = shape(d, 3 * d).with_parts(OutputParts::Qkv { q: d, kv: d });
        Ok(Self {
            ln_1: LayerNorm::build(&mut p.at("ln_1"), d, eps)?,
            c_attn: linear(p.at("attn").at("c_attn"), Role::Attention, qkv, std)?,
            c_proj: linear(p.at("attn").at("c_proj"), Role::Attention, shape(d, d), residual_std)?,
            ln_2: LayerNorm::build(&mut p.at("ln_2"), d, eps)?,
            c_fc: linear(p.at("mlp").at("c_fc"), Role::Mlp, shape(d, inner), std)?,
            mlp_c_proj: linear(p.at("mlp").at("c_proj"), Role::Mlp, shape(inner, d), residual_std)?,
            attention: Attention::new(&config.spec(), index).with_scale(scale),
        })
    }
}

/// The GPT-2 decoder, pre-norm: `h = x + Attention(LN₁(x)); y = h + MLP(LN₂(h))`.
pub struct Gpt2 {
    config: Gpt2Config,
    activation: Activation,
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    head: Option<Linear>,
}

impl Gpt2 {
    fn build(config: &Gpt2Config, p: &mut LayerBuilder<'_>) -> Result<Self> {
        let (d, std) = (config.n_embd, config.initializer_range);
        let mut root = p.at("transformer");
        let v = config.vocab_size;
        let wte = Embedding::build(&mut root.at("wte"), Role::TokenEmbedding, v, d, std)?;
        let role = Role::PositionEmbedding;
        let wpe = Embedding::build(&mut root.at("wpe"), role, config.n_positions, d, std)?;
        let mut blocks = Vec::new();
        for index in 0..config.n_layer {
            blocks.push(Block::build(config, index, root.at("h").at(index))?);
        }
        let ln_f = LayerNorm::build(&mut root.at("ln_f"), d, config.layer_norm_epsilon)?;
        let head = Linear::head(&mut p.at("lm_head"), &wte, config.tie_word_embeddings, std)?;
        let activation = config.activation()?;
        Ok(Self { config: config.clone(), activation, wte, wpe, blocks, ln_f, head })
    }
}

impl Stack for Gpt2 {
    type Context = AttentionContext;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        Ok(self.blocks[index].ln_1.forward(x)?)
    }

    fn block(
        &self,
        index: usize,
        Residual { x, normed }: &Residual,
        context: &AttentionContext,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let block = &self.blocks[index];
        let qkv = block.c_attn.forward(normed)?;
        let a = block.attention.forward_packed(&qkv, context, cache)?;
        let (h, normed) = block.ln_2.forward_add(x, &block.c_proj.forward(&a)?)?;
        let m = Linear::feed_forward(&normed, &block.c_fc, self.activation, &block.mlp_c_proj)?;
        let next_norm = self.blocks.get(index + 1).map_or(&self.ln_f, |next| &next.ln_1);
        let (x, normed) = next_norm.forward_add(&h, &m)?;
        Ok(Residual { x, normed })
    }
}

impl Architecture for Arc<Gpt2> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        pass.check(&self.config.spec())?;
        let tokens = pass.tokens;
        let x = self.wte.forward(&tokens.ids)?.add(&self.wpe.forward(&tokens.positions)?)?;
        let context = AttentionContext::causal(&pass)?;
        stack::run(self, x, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
