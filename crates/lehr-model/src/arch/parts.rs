//! Parts of lehr's own decoders that most families do not have. Each is off unless a family asks
//! for it: learned factors of the residual stream and of the first embedding, rows for pairs of
//! tokens, a mixture with the previous embedding, and the middle of the network taken off its end.
//!
//! With `x₀` the embedded tokens, `g` the rows of the pairs and `m` a stream from the middle, the
//! input of block `l` and the input of the last norm are
//!
//! ```text
//! xₗ = aₗ x + bₗ x₀ + cₗ g        y = x − λ m
//! ```
//!
//! They come from the public speed contests of small language models (Jordan et al. 2024,
//! <https://github.com/KellerJordan/modded-nanogpt>; Karpathy 2025,
//! <https://github.com/karpathy/nanochat>).

use lehr_tensor::ops::add_gated::Gate;
use lehr_tensor::ops::previous_rows::{AtStart, Previous};
use lehr_tensor::ops::weighted_sum::Term;
use lehr_tensor::{Init, Param, Role, Tensor};

use super::previous::PreviousTokens;
use super::{Residual, Spec};
use crate::Result;
use crate::nn::{Embedding, LayerBuilder, Linear, LinearShape, RmsNorm};

/// Channels of the stream that gates read.
pub(super) const GATE_CHANNELS: usize = 12;

/// The choice of parts outside the blocks.
#[derive(Clone, Copy, Default)]
pub(super) struct PartSettings {
    /// Whether each block scales the stream by a learned factor.
    pub(super) residual_scalars: bool,
    /// Whether each block adds the embedded tokens times a learned factor.
    pub(super) x0_scalars: bool,
    /// Rows of the table for pairs of tokens, 0 if there is none.
    pub(super) bigram_rows: usize,
    /// Whether each embedding is mixed with that of the previous token.
    pub(super) smear: bool,
    /// Whether the stream of the middle is taken off that of the end.
    pub(super) backout: bool,
}

/// Input of the blocks that only these parts read.
#[derive(Clone)]
pub(super) struct PartContext {
    /// Token ids `[B, T]`, for value embeddings.
    ids: Option<Tensor>,
    /// Starts of texts `[B, T]`, for key offsets.
    pub(super) starts: Option<Tensor>,
    /// The embedded tokens `[B, T, D]`.
    x0: Option<Tensor>,
    /// Rows for pairs of tokens `[B, T, D]`.
    bigrams: Option<Tensor>,
    /// The stream of the middle `[B, T, D]`.
    middle: Option<Tensor>,
}

/// The parameters of the parts outside the blocks.
pub(super) struct Parts {
    smear: Option<Smear>,
    bigrams: Option<Embedding>,
    /// One for each block.
    mixes: Vec<Mix>,
    /// The factor of the middle.
    backout: Option<Param>,
}

/// The learned factors at the input of a block.
pub(super) struct Mix {
    residual: Option<Param>,
    x0: Option<Param>,
    bigrams: Option<Param>,
}

/// `eₜ + λ σ(w · eₜ[..12]) eₜ₋₁`.
struct Smear {
    gate: Linear,
    scale: Param,
}

impl PartContext {
    /// Creates the context of a pass: token ids and starts of texts, `[B, T]` each, where parts
    /// read them.
    pub(super) fn new(ids: Option<Tensor>, starts: Option<Tensor>) -> Self {
        Self { ids, starts, x0: None, bigrams: None, middle: None }
    }
}

impl Parts {
    /// Builds the parts of a decoder at `p`, the path of its embedding.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub(super) fn build(
        p: &mut LayerBuilder<'_>,
        settings: &PartSettings,
        spec: &Spec,
    ) -> Result<Self> {
        let (d, n) = (spec.hidden_size, spec.n_layers);
        let smear = match settings.smear {
            true => {
                let shape = LinearShape::new(GATE_CHANNELS, 1);
                let gate = Linear::build(&mut p.at("smear_gate"), Role::Gate, shape, 0.0)?;
                Some(Smear { gate, scale: scalar(p, "smear_scale", Role::Scalar, 0.0)? })
            }
            false => None,
        };
        let bigrams = match settings.bigram_rows {
            0 => None,
            rows => {
                let role = Role::BigramEmbedding;
                Some(Embedding::build(&mut p.at("bigram_embed"), role, rows, d, 0.0)?)
            }
        };
        let mut mixes = Vec::new();
        let mut layers = p.at("layers");
        for index in 0..n {
            let mut p = layers.at(index);
            let mut new = |on: bool, name, role, value| match on {
                true => scalar(&mut p, name, role, value).map(Some),
                false => Ok(None),
            };
            // Falls from 0 at the first block to 1 at the last.
            let depth = index as f32 / n.saturating_sub(1).max(1) as f32;
            let role = Role::ResidualScale;
            mixes.push(Mix {
                residual: new(
                    settings.residual_scalars,
                    "residual_scale",
                    role,
                    1.15 - 0.1 * depth,
                )?,
                x0: new(settings.x0_scalars, "x0_scale", Role::Scalar, 0.2 - 0.15 * depth)?,
                bigrams: new(bigrams.is_some(), "bigram_scale", Role::Scalar, 0.1)?,
            });
        }
        let backout = match settings.backout {
            true => Some(scalar(p, "backout_scale", Role::Scalar, 0.2)?),
            false => None,
        };
        Ok(Self { smear, bigrams, mixes, backout })
    }

    /// Returns whether tokens read the previous token outside of attention.
    pub(super) fn read_previous(&self) -> bool {
        self.smear.is_some() || self.bigrams.is_some()
    }

    /// Computes the input stream of the first block from embedded tokens `x`. `embed` embeds the
    /// ids it is given like those of `x`.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn enter(
        &self,
        x: Tensor,
        previous: Option<&PreviousTokens>,
        context: &mut PartContext,
        embed: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x;
        if let (Some(smear), Some(previous)) = (&self.smear, previous) {
            x = smear.forward(&x, previous, embed)?;
        }
        if let (Some(table), Some(previous)) = (&self.bigrams, previous) {
            context.bigrams = Some(table.forward(&previous.bigrams(table.n_rows())?)?);
        }
        if self.mixes.iter().any(|mix| mix.x0.is_some()) {
            context.x0 = Some(x.clone());
        }
        match self.mixes.first() {
            Some(mix) if !mix.is_empty() => mix.forward(&[&x], context),
            _ => Ok(x),
        }
    }

    /// Keeps the stream `x` at the input of block `index` if the end needs it.
    pub(super) fn keep_middle(&self, index: usize, x: &Tensor, context: &mut PartContext) {
        if self.backout.is_some() && index == middle(self.mixes.len()) {
            context.middle = Some(x.clone());
        }
    }

    /// Returns what follows block `index` before the norm.
    pub(super) fn after(&self, index: usize) -> After<'_> {
        match (self.mixes.get(index + 1), &self.backout) {
            (Some(mix), _) if !mix.is_empty() => After::Mix(mix),
            (None, Some(scale)) => After::Backout(scale),
            _ => After::Nothing,
        }
    }
}

/// Returns the block whose input the end takes off: the one after the middle, or the last.
fn middle(n_blocks: usize) -> usize {
    (n_blocks / 2 + 1).min(n_blocks.saturating_sub(1))
}

fn scalar(p: &mut LayerBuilder<'_>, name: &str, role: Role, value: f32) -> Result<Param> {
    Ok(p.param(name, role, [1], Init::Constant(value))?)
}

/// What happens to the stream between a block and the next norm.
#[derive(Clone, Copy)]
pub(super) enum After<'a> {
    /// Nothing.
    Nothing,
    /// The next block mixes it.
    Mix(&'a Mix),
    /// The stream of the middle is taken off, times this factor.
    Backout(&'a Param),
}

/// The end of a block: what follows it, and the norm after that.
#[derive(Clone, Copy)]
pub(super) struct BlockEnd<'a> {
    pub(super) after: After<'a>,
    pub(super) norm: &'a RmsNorm,
}

impl BlockEnd<'_> {
    /// Adds `delta` to the stream `h`, and applies what follows.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        delta: &Tensor,
        context: &PartContext,
    ) -> Result<Residual> {
        let x = match self.after {
            After::Mix(mix) => mix.forward(&[h, delta], context)?,
            After::Backout(scale) => match &context.middle {
                Some(middle) => Tensor::weighted_sum(&[
                    Term::new(h),
                    Term::new(delta),
                    Term::new(middle).times(&scale.tensor_f32()).scaled(-1.0),
                ])?,
                None => h.add(delta)?,
            },
            After::Nothing => {
                let (x, normed) = self.norm.forward_add(h, delta)?;
                return Ok(Residual { x, normed });
            }
        };
        let normed = self.norm.forward(&x)?;
        Ok(Residual { x, normed })
    }
}

impl Mix {
    fn is_empty(&self) -> bool {
        self.residual.is_none() && self.x0.is_none() && self.bigrams.is_none()
    }

    /// Mixes the stream, which is the sum of `stream`.
    fn forward(&self, stream: &[&Tensor], context: &PartContext) -> Result<Tensor> {
        let tensor = |param: &Option<Param>| param.as_ref().map(Param::tensor_f32);
        let [a, b, c] = [&self.residual, &self.x0, &self.bigrams].map(tensor);
        let term = |x, scale| match scale {
            Some(scale) => Term::new(x).times(scale),
            None => Term::new(x),
        };
        let mut terms: Vec<Term<'_>> = stream.iter().map(|x| term(*x, a.as_ref())).collect();
        terms.extend(context.x0.as_ref().filter(|_| b.is_some()).map(|x| term(x, b.as_ref())));
        terms.extend(context.bigrams.as_ref().filter(|_| c.is_some()).map(|x| term(x, c.as_ref())));
        Ok(Tensor::weighted_sum(&terms)?)
    }
}

impl Smear {
    fn forward(
        &self,
        x: &Tensor,
        previous: &PreviousTokens,
        embed: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let before = previous.before().map(embed).transpose()?;
        let rows = Previous { starts: previous.starts(), before: before.as_ref() };
        let other = x.previous_rows(rows, 0..x.shape().last_dim(), AtStart::Zero)?;
        let logits = self.gate.forward(&x.slice(2, 0..GATE_CHANNELS)?)?;
        let scale = self.scale.tensor_f32();
        let gate = Gate { logits: &logits, scale: Some(&scale), factor: 1.0 };
        Ok(x.add_gated(&other, gate)?)
    }
}

/// A table of vectors that are added to the values of a block, one per token id, behind a gate for
/// each head (value residual learning, Zhou et al. 2024, <https://arxiv.org/abs/2410.17897>):
/// `v + 3 σ(W x[..12]) e`.
pub(super) struct ValueEmbedding {
    table: Embedding,
    gate: Linear,
}

impl ValueEmbedding {
    /// Builds the table and the gate of an attention at `p`.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub(super) fn build(p: &mut LayerBuilder<'_>, spec: &Spec, std: f32) -> Result<Self> {
        let (kv, role) = (spec.n_kv_heads * spec.head_dim, Role::ValueEmbedding);
        let v = spec.vocab_size;
        let table = Embedding::build(&mut p.at("value_embed"), role, v, kv, std)?;
        let shape = LinearShape::new(GATE_CHANNELS, spec.n_kv_heads);
        let gate = Linear::build(&mut p.at("value_gate"), Role::Gate, shape, 0.0)?;
        Ok(Self { table, gate })
    }

    /// Adds the vectors of the tokens to `v` `[B, T, K, E]`; `x` is the input of the attention.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn add_to(&self, v: &Tensor, x: &Tensor, context: &PartContext) -> Result<Tensor> {
        let Some(ids) = &context.ids else { return Ok(v.clone()) };
        let e = self.table.forward(ids)?.reshape(v.shape())?;
        let logits = self.gate.forward(&x.slice(2, 0..GATE_CHANNELS)?)?;
        Ok(v.add_gated(&e, Gate { logits: &logits, scale: None, factor: 3.0 })?)
    }
}
