//! Decoders like Llama's: a token embedding, blocks between RMS norms, rotary positions, a last
//! norm and a head. A family's own file has its settings and chooses the parts of its blocks, which
//! are in `prenorm.rs`.

use std::sync::Arc;

use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{Role, Tensor};

use super::attention::AttentionContext;
use super::prenorm::Norms;
use super::rope::Rope;
use super::stack::{self, Stack};
use super::{Architecture, Pass, Residual, Spec};
use crate::nn::{Embedding, LayerBuilder, Linear, RmsNorm};
use crate::{KvCache, Result};

/// A block of such a decoder.
pub(super) trait Block: Send + Sync + 'static {
    /// Returns the block's first norm.
    fn first_norm(&self) -> &RmsNorm;

    /// Runs the block up to and including `next_norm`, the first norm of the next block.
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

/// Input shared by all blocks.
#[derive(Clone)]
pub(super) struct Context {
    /// The attention mask and the learned prefix.
    pub(super) attention: AttentionContext,
    /// The rotations of the model, one per kind of block.
    pub(super) ropes: Vec<RopeTable>,
}

/// The choices of a decoder outside its blocks.
pub(super) struct Shape {
    pub(super) spec: Spec,
    /// The rotations, one per kind of block.
    pub(super) ropes: Vec<Rope>,
    pub(super) rope_layout: RopeLayout,
    pub(super) norms: Norms,
    /// Factor of the embeddings.
    pub(super) embedding_scale: Option<f32>,
    /// Logit cap `c`: logits become `c tanh(logit / c)`.
    pub(super) logit_softcap: Option<f32>,
    /// Standard deviation of new weights.
    pub(super) std: f32,
    /// Whether the head is tied to the embedding.
    pub(super) is_tied: bool,
}

impl Shape {
    /// Describes a decoder with one rotation, unscaled embeddings, uncapped logits and an untied
    /// head.
    pub(super) fn new(spec: Spec, rope: Rope, norms: Norms, std: f32) -> Self {
        Self {
            spec,
            ropes: vec![rope],
            rope_layout: RopeLayout::HalfSplit,
            norms,
            embedding_scale: None,
            logit_softcap: None,
            std,
            is_tied: false,
        }
    }
}

struct Decoder<B> {
    shape: Shape,
    embed_tokens: Embedding,
    blocks: Vec<B>,
    norm: RmsNorm,
    head: Option<Linear>,
}

/// Builds a decoder. `block` builds each block from its index and builder.
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
    let norm = shape.norms.build(&mut root.at("norm"), d)?;
    let head = Linear::head(&mut p.at("lm_head"), &embed_tokens, shape.is_tied, std)?;
    Ok(Box::new(Arc::new(Decoder { shape, embed_tokens, blocks, norm, head })))
}

impl<B: Block> Stack for Decoder<B> {
    type Context = Context;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        Ok(self.blocks[index].first_norm().forward(x)?)
    }

    fn block(
        &self,
        index: usize,
        residual: &Residual,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let next_norm = self.blocks.get(index + 1).map_or(&self.norm, Block::first_norm);
        self.blocks[index].forward(residual, context, next_norm, cache)
    }
}

impl<B: Block> Architecture for Arc<Decoder<B>> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        let Shape { spec, ropes, rope_layout, embedding_scale, .. } = &self.shape;
        pass.check(spec)?;
        let table = |rope: &Rope| rope.table(&pass.tokens.positions, *rope_layout);
        let ropes = ropes.iter().map(table).collect::<Result<_>>()?;
        let context = Context { attention: AttentionContext::causal(&pass)?, ropes };
        let mut x = self.embed_tokens.forward(&pass.tokens.ids)?;
        if let Some(scale) = embedding_scale {
            x = x.scale(*scale)?;
        }
        stack::run(self, x, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn logit_softcap(&self) -> Option<f32> {
        self.shape.logit_softcap
    }

    fn spec(&self) -> Spec {
        self.shape.spec
    }
}
