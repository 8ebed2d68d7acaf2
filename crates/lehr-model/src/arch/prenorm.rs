//! Blocks with a norm before each sub-layer: grouped-query attention and a gated MLP between RMS
//! norms, as in Llama, and the same with norms after the sub-layers too.
//!
//! Their equations, with `norm` an RMS norm:
//!
//! ```text
//! pre-norm (Llama, Mistral, Qwen 2 and 3, GLM-4-9B)    sandwich (Gemma 3, GLM-4-0414)
//! h = x + Attention(norm₁(x))                          h = x + norm₂(Attention(norm₁(x)))
//! y = h + MLP(norm₂(h))                                y = h + norm₄(MLP(norm₃(h)))
//! ```
//!
//! The code shifts norms between blocks, as `stack.rs` explains: a block takes `norm₁(x)` and ends
//! with the first norm of the next block.

use lehr_tensor::ops::rope::RopeTable;
use lehr_tensor::{Role, Tensor};

use super::attention::{Attention, Qkv};
use super::decoder::{Block, Context};
use super::parts::{BlockEnd, ValueEmbedding};
use super::{Residual, Spec, residual_std};
use crate::nn::{
    FusedGatedMlp, GatedMlp, LayerBuilder, Linear, LinearShape, MlpShape, PlainMlp, RmsNorm,
};
use crate::{KvCache, Result};

/// The settings of a model's RMS norms.
#[derive(Clone, Copy)]
pub(super) struct Norms {
    /// Added to the mean square.
    pub(super) eps: f32,
    /// What they multiply by.
    pub(super) scale: NormScale,
}

/// The factor that an RMS norm applies after dividing by the root mean square.
#[derive(Clone, Copy)]
pub(super) enum NormScale {
    /// A weight.
    Weight,
    /// `1 + weight` (Gemma).
    OnePlusWeight,
    /// None (nanochat).
    None,
}

impl Norms {
    /// Describes norms that scale by their weight.
    pub(super) fn new(eps: f32) -> Self {
        Self { eps, scale: NormScale::Weight }
    }

    /// Builds a norm over `width` values.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub(super) fn build(self, p: &mut LayerBuilder<'_>, width: usize) -> Result<RmsNorm> {
        Ok(match self.scale {
            NormScale::Weight => RmsNorm::build(p, width, self.eps)?,
            NormScale::OnePlusWeight => RmsNorm::build_one_plus(p, width, self.eps)?,
            NormScale::None => RmsNorm::unscaled(width, self.eps)?,
        })
    }
}

/// The choices of a grouped-query attention.
#[derive(Clone, Copy)]
pub(super) struct AttentionSettings {
    /// Sizes of the model.
    pub(super) spec: Spec,
    /// Whether the query, key and value projections have biases.
    pub(super) qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub(super) out_bias: bool,
    /// Number of tokens a token attends to, including itself; `None` means all earlier ones.
    pub(super) window: Option<usize>,
    /// Norms over each head of queries and keys.
    pub(super) qk_norms: Option<Norms>,
    /// Whether those norms follow the rotation instead of preceding it.
    pub(super) norm_after_rope: bool,
    /// The scores are divided by the square root of this.
    pub(super) scale_width: usize,
    /// Factor of the scores.
    pub(super) score_gain: f32,
    /// Whether a table of vectors per token is added to the values.
    pub(super) value_embedding: bool,
    /// Whether the channels of keys that are not rotated, the upper half, are those of the previous
    /// token.
    pub(super) key_offset: bool,
    /// Index of the rotation among those of the model.
    pub(super) rope: usize,
    /// Standard deviation of new weights.
    pub(super) std: f32,
    /// Standard deviation of a new output projection.
    pub(super) out_std: f32,
}

impl AttentionSettings {
    /// Describes attention without biases, norms or a window.
    pub(super) fn new(spec: Spec, std: f32) -> Self {
        Self {
            spec,
            qkv_bias: false,
            out_bias: false,
            window: None,
            qk_norms: None,
            norm_after_rope: false,
            scale_width: spec.head_dim,
            score_gain: 1.0,
            value_embedding: false,
            key_offset: false,
            rope: 0,
            std,
            out_std: residual_std(std, spec.n_layers),
        }
    }
}

/// Grouped-query attention: several query heads share one key-value head (Ainslie et al. 2023,
/// <https://arxiv.org/abs/2305.13245>). Positions are rotary.
pub(super) struct GroupedQueryAttention {
    attention: Attention,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of queries and of keys.
    qk_norms: Option<(RmsNorm, RmsNorm)>,
    norm_after_rope: bool,
    value_embedding: Option<ValueEmbedding>,
    key_offset: bool,
    rope: usize,
}

impl GroupedQueryAttention {
    /// Builds the attention of block `layer`.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub(super) fn build(
        mut p: LayerBuilder<'_>,
        layer: usize,
        settings: &AttentionSettings,
    ) -> Result<Self> {
        let AttentionSettings { spec, qkv_bias, out_bias, std, .. } = *settings;
        let (d, e) = (spec.hidden_size, spec.head_dim);
        let (q, kv) = (spec.n_heads * e, spec.n_kv_heads * e);
        let mut project = |name, shape: LinearShape, std| {
            Linear::build(&mut p.at(name), Role::Attention, shape, std)
        };
        let q_proj = project("q_proj", LinearShape::new(d, q).with_bias(qkv_bias), std)?;
        let k_proj = project("k_proj", LinearShape::new(d, kv).with_bias(qkv_bias), std)?;
        let v_proj = project("v_proj", LinearShape::new(d, kv).with_bias(qkv_bias), std)?;
        let out = LinearShape::new(q, d).with_bias(out_bias);
        let o_proj = project("o_proj", out, settings.out_std)?;
        let qk_norms = match settings.qk_norms {
            Some(norms) => {
                Some((norms.build(&mut p.at("q_norm"), e)?, norms.build(&mut p.at("k_norm"), e)?))
            }
            None => None,
        };
        let value_embedding = match settings.value_embedding {
            true => Some(ValueEmbedding::build(&mut p, &spec, std)?),
            false => None,
        };
        let scale = (settings.scale_width as f64).sqrt().recip() as f32 * settings.score_gain;
        let attention = Attention::new(&spec, layer).with_scale(scale).with_window(settings.window);
        let AttentionSettings { norm_after_rope, key_offset, rope, .. } = *settings;
        Ok(Self {
            attention,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            qk_norms,
            norm_after_rope,
            value_embedding,
            key_offset,
            rope,
        })
    }

    /// Computes attention `[B, T, D]` from the normalised residual stream `x`.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        context: &Context,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let mut qkv = self.qkv(x, &context.ropes[self.rope])?;
        if let Some(embedding) = &self.value_embedding {
            qkv.v = embedding.add_to(&qkv.v, x, &context.parts)?;
        }
        if let (true, Some(starts)) = (self.key_offset, &context.parts.starts) {
            qkv.k = self.attention.offset_keys(&qkv.k, starts, cache.as_deref_mut())?;
        }
        let a = self.attention.forward(&qkv, &context.attention, cache)?;
        Ok(self.o_proj.forward(&a)?)
    }

    fn qkv(&self, x: &Tensor, rope: &RopeTable) -> Result<Qkv> {
        let mut q = self.attention.queries(&self.q_proj.forward(x)?)?;
        let mut k = self.attention.keys(&self.k_proj.forward(x)?)?;
        let norms = |after| self.qk_norms.as_ref().filter(|_| self.norm_after_rope == after);
        if let Some((q_norm, k_norm)) = norms(false) {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        (q, k) = (q.rope(rope)?, k.rope(rope)?);
        if let Some((q_norm, k_norm)) = norms(true) {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        Ok(Qkv { q, k, v: self.attention.keys(&self.v_proj.forward(x)?)? })
    }
}

/// An MLP, in one of the forms found in checkpoints.
pub(super) enum Mlp {
    /// Separate matrices for gate and up.
    Separate(GatedMlp),
    /// One matrix for gate and up.
    Fused(FusedGatedMlp),
    /// No gate.
    Plain(PlainMlp),
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Separate(mlp) => mlp.forward(x)?,
            Self::Fused(mlp) => mlp.forward(x)?,
            Self::Plain(mlp) => mlp.forward(x)?,
        })
    }
}

/// The choices of a [`PreNormBlock`] with Llama's parameter names.
pub(super) struct BlockSettings {
    pub(super) attention: AttentionSettings,
    pub(super) norms: Norms,
    pub(super) mlp: MlpShape,
}

/// A pre-norm block: `h = x + Attention(norm₁(x)); y = h + MLP(norm₂(h))`.
pub(super) struct PreNormBlock {
    pub(super) input_layernorm: RmsNorm,
    pub(super) attention: GroupedQueryAttention,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) mlp: Mlp,
}

impl PreNormBlock {
    /// Builds block `layer` with Llama's parameter names.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub(super) fn build(
        mut p: LayerBuilder<'_>,
        layer: usize,
        settings: &BlockSettings,
    ) -> Result<Self> {
        let BlockSettings { attention, norms, mlp } = settings;
        let d = attention.spec.hidden_size;
        Ok(Self {
            input_layernorm: norms.build(&mut p.at("input_layernorm"), d)?,
            attention: GroupedQueryAttention::build(p.at("self_attn"), layer, attention)?,
            post_attention_layernorm: norms.build(&mut p.at("post_attention_layernorm"), d)?,
            mlp: Mlp::Separate(GatedMlp::build(&mut p.at("mlp"), *mlp)?),
        })
    }
}

impl Block for PreNormBlock {
    fn first_norm(&self) -> &RmsNorm {
        &self.input_layernorm
    }

    fn forward(
        &self,
        Residual { x, normed }: &Residual,
        context: &Context,
        end: BlockEnd<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let a = self.attention.forward(normed, context, cache)?;
        let (h, normed) = self.post_attention_layernorm.forward_add(x, &a)?;
        end.forward(&h, &self.mlp.forward(&normed)?, &context.parts)
    }
}

/// A sandwich-norm block: `h = x + norm₂(Attention(norm₁(x))); y = h + norm₄(MLP(norm₃(h)))`.
pub(super) struct SandwichBlock {
    pub(super) before_attention: RmsNorm,
    pub(super) attention: GroupedQueryAttention,
    pub(super) after_attention: RmsNorm,
    pub(super) before_mlp: RmsNorm,
    pub(super) mlp: Mlp,
    pub(super) after_mlp: RmsNorm,
}

impl Block for SandwichBlock {
    fn first_norm(&self) -> &RmsNorm {
        &self.before_attention
    }

    fn forward(
        &self,
        Residual { x, normed }: &Residual,
        context: &Context,
        end: BlockEnd<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let a = self.after_attention.forward(&self.attention.forward(normed, context, cache)?)?;
        let (h, normed) = self.before_mlp.forward_add(x, &a)?;
        let m = self.after_mlp.forward(&self.mlp.forward(&normed)?)?;
        end.forward(&h, &m, &context.parts)
    }
}
