//! What the decoders of Llama's kind have in common: a table of tokens, blocks between RMS norms,
//! rotated heads, a last norm and a head. A family's own file has its settings and the wiring of
//! its block.

use std::sync::Arc;

use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{Role, Tensor};

use super::rope::Rope;
use super::stack::{self, Stack};
use super::{Architecture, Pass, Residual, Spec, Tokens};
use crate::nn::{Embedding, LayerBuilder, Linear, LinearShape, RmsNorm};
use crate::{KvCache, Result};

/// A block of a family.
pub(super) trait Block: Send + Sync + 'static {
    /// The norm it begins with.
    fn input_layernorm(&self) -> &RmsNorm;

    /// From the residual stream `x` `[B, T, D]` and its norm `h` to both for what follows, whose
    /// first norm is `next_norm`.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    fn forward(
        &self,
        residual: &Residual,
        context: &Context,
        next_norm: &RmsNorm,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual>;
}

/// The tokens and their rotation.
pub(super) type Context = (Tokens, RopeTable);

/// What a decoder is besides its blocks.
pub(super) struct Shape {
    pub(super) spec: Spec,
    pub(super) rope: Rope,
    pub(super) rope_layout: RopeLayout,
    pub(super) rms_norm_eps: f32,
    /// Standard deviation of new weights.
    pub(super) std: f32,
    /// Whether the head is the embedding.
    pub(super) is_tied: bool,
}

struct Decoder<B> {
    shape: Shape,
    embed_tokens: Embedding,
    blocks: Vec<B>,
    norm: RmsNorm,
    head: Linear,
}

/// Builds a decoder, its blocks by `block` from their index and place.
///
/// # Errors
/// If the source of parameters fails or `block` does.
pub(super) fn build<B: Block>(
    p: &mut LayerBuilder<'_>,
    shape: Shape,
    block: impl Fn(usize, LayerBuilder<'_>) -> Result<B>,
) -> Result<Box<dyn Architecture>> {
    let (d, v, std) = (shape.spec.hidden_size, shape.spec.vocab_size, shape.std);
    let mut root = p.at("model");
    let role = Role::TokenEmbedding;
    let embed_tokens = Embedding::build(&mut root.at("embed_tokens"), role, v, d, std)?;
    let mut blocks = Vec::new();
    for index in 0..shape.spec.n_layers {
        blocks.push(block(index, root.at("layers").at(index))?);
    }
    let norm = RmsNorm::build(&mut root.at("norm"), d, shape.rms_norm_eps)?;
    let head = match shape.is_tied {
        true => Linear::tied(&mut p.at("lm_head"), &embed_tokens)?,
        false => Linear::build(&mut p.at("lm_head"), Role::Head, LinearShape::new(d, v), std)?,
    };
    Ok(Box::new(Arc::new(Decoder { shape, embed_tokens, blocks, norm, head })))
}

impl<B: Block> Stack for Decoder<B> {
    type Context = Context;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        Ok(self.blocks[index].input_layernorm().forward(x)?)
    }

    fn block(
        &self,
        index: usize,
        residual: &Residual,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let next_norm = self.blocks.get(index + 1).map_or(&self.norm, Block::input_layernorm);
        self.blocks[index].forward(residual, context, next_norm, cache)
    }
}

impl<B: Block> Architecture for Arc<Decoder<B>> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        let Shape { spec, rope, rope_layout, .. } = &self.shape;
        pass.check(spec)?;
        let tokens = pass.tokens;
        let rope = rope.table_of(&tokens.positions, *rope_layout)?;
        let x = self.embed_tokens.forward(&tokens.ids)?;
        stack::run(self, x, &(tokens.clone(), rope), pass)
    }

    fn head(&self) -> Option<&Linear> {
        Some(&self.head)
    }

    fn spec(&self) -> Spec {
        self.shape.spec
    }
}
