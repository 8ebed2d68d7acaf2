//! Decoders like Llama's: a token embedding, blocks between RMS norms, rotary positions, a last
//! norm and a head. A family's own file has its settings and chooses the parts of its blocks, which
//! are in `prenorm.rs`.

use std::sync::Arc;

use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{Role, Tensor};

use super::attention::AttentionContext;
use super::parts::{BlockEnd, PartContext, PartSettings, Parts};
use super::prenorm::Norms;
use super::previous::PreviousTokens;
use super::rope::Rope;
use super::stack::{self, Stack};
use super::{Architecture, Pass, Residual, Spec};
use crate::nn::{Embedding, LayerBuilder, Linear, RmsNorm};
use crate::{KvCache, Result};

/// A block of such a decoder.
pub(super) trait Block: Send + Sync + 'static {
    /// Returns the block's first norm.
    fn first_norm(&self) -> &RmsNorm;

    /// Runs the block up to and including `end`, the first norm of the next block.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    fn forward(
        &self,
        residual: &Residual,
        context: &Context,
        end: BlockEnd<'_>,
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
    /// Input of parts that most families do not have.
    pub(super) parts: PartContext,
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
    /// Whether a norm without a scale follows the embedding.
    pub(super) embedding_norm: bool,
    /// Logit cap `c`: logits become `c tanh(logit / c)`.
    pub(super) logit_softcap: Option<f32>,
    /// Standard deviation of a new embedding.
    pub(super) embedding_std: f32,
    /// Standard deviation of a new head.
    pub(super) head_std: f32,
    /// Whether the head is tied to the embedding.
    pub(super) is_tied: bool,
    /// Parts that most families do not have.
    pub(super) parts: PartSettings,
    /// Whether blocks have value embeddings.
    pub(super) value_embeddings: bool,
    /// Whether blocks offset their keys.
    pub(super) key_offset: bool,
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
            embedding_norm: false,
            logit_softcap: None,
            embedding_std: std,
            head_std: std,
            is_tied: false,
            parts: PartSettings::default(),
            value_embeddings: false,
            key_offset: false,
        }
    }
}

struct Decoder<B> {
    shape: Shape,
    embed_tokens: Embedding,
    embedding_norm: Option<RmsNorm>,
    parts: Parts,
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
    let (d, v, std) = (shape.spec.hidden_size, shape.spec.vocab_size, shape.embedding_std);
    let mut root = p.at("model");
    let role = Role::TokenEmbedding;
    let embed_tokens = Embedding::build(&mut root.at("embed_tokens"), role, v, d, std)?;
    let embedding_norm = match shape.embedding_norm {
        true => Some(RmsNorm::unscaled(d, shape.norms.eps)?),
        false => None,
    };
    let parts = Parts::build(&mut root, &shape.parts, &shape.spec)?;
    let mut blocks = Vec::new();
    for index in 0..shape.spec.n_layers {
        blocks.push(block(index, root.at("layers").at(index))?);
    }
    let norm = shape.norms.build(&mut root.at("norm"), d)?;
    let head = Linear::head(&mut p.at("lm_head"), &embed_tokens, shape.is_tied, shape.head_std)?;
    Ok(Box::new(Arc::new(Decoder {
        shape,
        embed_tokens,
        embedding_norm,
        parts,
        blocks,
        norm,
        head,
    })))
}

impl<B: Block> Stack for Decoder<B> {
    type Context = Context;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        Ok(self.blocks[index].first_norm().forward(x)?)
    }

    fn before_block(&self, index: usize, x: &Tensor, context: &mut Context) {
        self.parts.keep_middle(index, x, &mut context.parts);
    }

    fn block(
        &self,
        index: usize,
        residual: &Residual,
        context: &Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let norm = self.blocks.get(index + 1).map_or(&self.norm, Block::first_norm);
        let end = BlockEnd { after: self.parts.after(index), norm };
        self.blocks[index].forward(residual, context, end, cache)
    }
}

impl<B: Block> Decoder<B> {
    /// Embeds ids `[B, T]`, without what depends on other tokens.
    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.embed_tokens.forward(ids)?;
        if let Some(scale) = self.shape.embedding_scale {
            x = x.scale(scale)?;
        }
        match &self.embedding_norm {
            Some(norm) => Ok(norm.forward(&x)?),
            None => Ok(x),
        }
    }
}

impl<B: Block> Architecture for Arc<Decoder<B>> {
    fn forward(&self, mut pass: Pass<'_>) -> Result<Tensor> {
        let Shape { spec, ropes, rope_layout, .. } = &self.shape;
        pass.check(spec)?;
        let table = |rope: &Rope| rope.table(&pass.tokens.positions, *rope_layout);
        let ropes = ropes.iter().map(table).collect::<Result<_>>()?;
        let previous = match self.reads_previous_token() {
            true => Some(PreviousTokens::new(pass.tokens, pass.cache.as_deref())?),
            false => None,
        };
        let ids = self.shape.value_embeddings.then(|| pass.tokens.ids.clone());
        let starts = previous.as_ref().map(|previous| previous.starts().clone());
        let mut parts = PartContext::new(ids, starts);
        let x = self.embed(&pass.tokens.ids)?;
        let x = self.parts.enter(x, previous.as_ref(), &mut parts, |ids| self.embed(ids))?;
        let context = Context { attention: AttentionContext::causal(&pass)?, ropes, parts };
        if let (Some(cache), Some(previous)) = (&mut pass.cache, &previous) {
            cache.set_next_ids(previous.last_ids());
        }
        stack::run(self, x, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }

    fn logit_softcap(&self) -> Option<f32> {
        self.shape.logit_softcap
    }

    fn reads_previous_token(&self) -> bool {
        self.parts.read_previous() || self.shape.key_offset
    }

    fn reads_previous_keys(&self) -> bool {
        self.shape.key_offset
    }

    fn spec(&self) -> Spec {
        self.shape.spec
    }
}
