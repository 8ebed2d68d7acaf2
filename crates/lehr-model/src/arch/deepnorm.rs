//! Decoders whose norms' outputs are the residual stream: ChatGLM-6B and GLM-130B ("DeepNorm", Wang
//! et al. 2022, <https://arxiv.org/abs/2203.00555>). Unlike in the paper, a norm stands at the
//! entry of the next sub-layer. Texts have a bidirectional prefix.
//!
//! With `u = LN₁(x)` at the entry, a block computes
//!
//! ```text
//! h = LN₂(α u + Attention(u))
//! y = α h + MLP(h)
//! ```
//!
//! and the next block normalises `y` first. To make that sum and norm one operation, a block here
//! takes `u` and returns the next block's `u` (see `stack.rs`).

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{OutputParts, Role, Tensor};

use super::attention::{Attention, AttentionContext, Qkv};
use super::prefix::PrefixRule;
use super::stack::{self, Stack};
use super::{Architecture, Layout, Pass, Residual, Spec};
use crate::nn::{Embedding, FusedGatedMlp, LayerBuilder, LayerNorm, Linear, LinearShape};
use crate::{KvCache, Result};

/// The choices of such a decoder outside its blocks' MLPs.
pub(super) struct Shape {
    pub(super) spec: Spec,
    /// α, the factor of the residual.
    pub(super) alpha: f32,
    /// Added to the variance in every norm.
    pub(super) eps: f32,
    /// Layout of texts.
    pub(super) rule: PrefixRule,
    /// Rotation of queries and keys.
    pub(super) rotation: Rotation,
    /// Whether the head is tied to the embedding.
    pub(super) is_tied: bool,
    /// Standard deviations of new weights.
    pub(super) std: WeightStd,
}

/// Standard deviations of new weights.
#[derive(Clone, Copy)]
pub(super) struct WeightStd {
    /// For the embedding, the head and `query_key_value`.
    pub(super) input: f32,
    /// For the output projection of attention.
    pub(super) attention_out: f32,
}

/// The rotation of queries and keys, with the inverse frequencies.
pub(super) enum Rotation {
    /// The position in the text rotates the whole head.
    Text(Vec<f64>),
    /// The position in the text rotates one half of the head, the position in the continuation the
    /// other.
    TextAndBlock(Vec<f64>),
}

/// The MLP of a block.
pub(super) enum Mlp {
    /// `down(GELU(up(x)))`.
    Gelu {
        /// `dense_h_to_4h`.
        up: Linear,
        /// `dense_4h_to_h`.
        down: Linear,
    },
    /// `down(GELU(gate) ⊙ up)`.
    GeGlu(FusedGatedMlp),
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu { up, down } => Linear::feed_forward(x, up, Activation::GeluTanh, down)?,
            Self::GeGlu(mlp) => mlp.forward(x)?,
        })
    }
}

struct Block {
    input_layernorm: LayerNorm,
    attention: Attention,
    /// Holds query, key and value of each head in turn.
    query_key_value: Linear,
    dense: Linear,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn build(
        mut p: LayerBuilder<'_>,
        layer: usize,
        shape: &Shape,
        mlp: impl Fn(LayerBuilder<'_>) -> Result<Mlp>,
    ) -> Result<Self> {
        let (spec, eps) = (&shape.spec, shape.eps);
        let d = spec.hidden_size;
        let input_layernorm = LayerNorm::build(&mut p.at("input_layernorm"), d, eps)?;
        let mut attn = p.at("attention");
        let mut linear = |name, n_out, std| {
            let parts = match name {
                "query_key_value" => OutputParts::QkvByHead { head_dim: spec.head_dim },
                _ => OutputParts::Whole,
            };
            let shape = LinearShape::new(d, n_out).with_bias(true).with_parts(parts);
            Linear::build(&mut attn.at(name), Role::Attention, shape, std)
        };
        // The published code divides the scores of layer `l` by `l + 1` and multiplies them back,
        // to stay in the range of 16-bit floats. In exact arithmetic the two cancel, so neither is
        // done here.
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        Ok(Self {
            input_layernorm,
            attention: Attention::new(spec, layer).with_scale(scale),
            query_key_value: linear("query_key_value", 3 * d, shape.std.input)?,
            dense: linear("dense", d, shape.std.attention_out)?,
            post_attention_layernorm: LayerNorm::build(
                &mut p.at("post_attention_layernorm"),
                d,
                eps,
            )?,
            mlp: mlp(p.at("mlp"))?,
        })
    }

    fn attention(
        &self,
        u: &Tensor,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let Qkv { q, k, v } = self.attention.split_by_head(&self.query_key_value.forward(u)?)?;
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

struct DeepNorm {
    shape: Shape,
    word_embeddings: Embedding,
    blocks: Vec<Block>,
    final_layernorm: LayerNorm,
    head: Option<Linear>,
}

/// Builds a decoder. `mlp` builds the MLP of each block from its builder.
///
/// # Errors
/// If the source of parameters fails.
pub(super) fn build(
    p: &mut LayerBuilder<'_>,
    shape: Shape,
    mlp: impl Fn(LayerBuilder<'_>) -> Result<Mlp>,
) -> Result<Box<dyn Architecture>> {
    let (d, v, std) = (shape.spec.hidden_size, shape.spec.vocab_size, shape.std.input);
    let mut root = p.at("transformer");
    let role = Role::TokenEmbedding;
    let word_embeddings = Embedding::build(&mut root.at("word_embeddings"), role, v, d, std)?;
    let mut blocks = Vec::new();
    for layer in 0..shape.spec.n_layers {
        blocks.push(Block::build(root.at("layers").at(layer), layer, &shape, &mlp)?);
    }
    let final_layernorm = LayerNorm::build(&mut root.at("final_layernorm"), d, shape.eps)?;
    let head = Linear::head(&mut p.at("lm_head"), &word_embeddings, shape.is_tied, std)?;
    Ok(Box::new(Arc::new(DeepNorm { shape, word_embeddings, blocks, final_layernorm, head })))
}

impl Stack for DeepNorm {
    type Context = Context;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, _: usize, x: &Tensor) -> Result<Tensor> {
        // The residual stream of DeepNorm is already normalised.
        Ok(x.clone())
    }

    fn block(
        &self,
        index: usize,
        Residual { x, normed: u }: &Residual,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let (block, alpha) = (&self.blocks[index], self.shape.alpha);
        let a = block.attention(u, context, cache)?;
        let (_, h) = block.post_attention_layernorm.forward_add(&x.scale(alpha)?, &a)?;
        let m = block.mlp.forward(&h)?;
        let next_norm =
            self.blocks.get(index + 1).map_or(&self.final_layernorm, |next| &next.input_layernorm);
        let (_, u) = next_norm.forward_add(&h.scale(alpha)?, &m)?;
        Ok(Residual::already_normed(u))
    }
}

impl Architecture for Arc<DeepNorm> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        let (spec, tokens) = (&self.shape.spec, pass.tokens);
        let rope = match &self.shape.rotation {
            Rotation::Text(inv_freq) => {
                pass.check_prefix(spec)?;
                RopeTable::new(&tokens.positions, inv_freq, RopeLayout::HalfSplit, 1.0)?
            }
            Rotation::TextAndBlock(inv_freq) => {
                let block_positions = pass.check_two_streams(spec)?;
                RopeTable::two_dimensional(&tokens.positions, block_positions, inv_freq)?
            }
        };
        let context = Context { attention: AttentionContext::causal(&pass)?, rope };
        let x = self.word_embeddings.forward(&tokens.ids)?;
        let u = self.blocks[0].input_layernorm.forward(&x)?;
        stack::run(self, u, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn has_prefix(&self) -> bool {
        true
    }

    fn layout(&self, ids: &[i32]) -> Result<Layout> {
        self.shape.rule.layout(ids)
    }

    fn spec(&self) -> Spec {
        self.shape.spec
    }
}
