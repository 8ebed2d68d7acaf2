//! lehr's own family: Llama's block with parts from which small models learn faster. Each part can
//! be switched on by itself; with none it is a Llama, bit for bit. No other program reads it.
//! Weights are `[out, in]`.

use lehr_tensor::ops::activation::Activation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::nanochat::check_softcap;
use super::parts::{GATE_CHANNELS, PartSettings};
use super::prenorm::{
    AttentionSettings, GroupedQueryAttention, Mlp, NormScale, Norms, PreNormBlock,
};
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, check_spec, divides,
    residual_std, with_and_without_prefix,
};
use crate::nn::{GatedMlp, LayerBuilder, MlpShape, PlainMlp};
use crate::{Error, Result};

/// The version of this family that this file computes.
const VERSION: u32 = 1;

/// The kind of MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MlpKind {
    /// `down(silu(gate(x)) ⊙ up(x))`, as in Llama.
    #[default]
    SwiGlu,
    /// `down(max(up(x), 0)²)`.
    Relu2,
}

/// The settings of lehr's own family. A part whose key is missing is off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LehrConfig {
    /// Version of the family.
    pub lehr_version: u32,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key-value heads.
    pub num_key_value_heads: usize,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Standard deviation of a new embedding; `None` means `initializer_range`.
    #[serde(default)]
    pub embedding_initializer_range: Option<f32>,
    /// Standard deviation of a new head; `None` means `initializer_range`.
    #[serde(default)]
    pub head_initializer_range: Option<f32>,
    /// Whether the head is tied to the embedding.
    pub tie_word_embeddings: bool,
    /// The parts.
    #[serde(flatten)]
    pub parts: LehrParts,
    /// Rotary settings.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, or a list of such tokens.
    #[serde(default)]
    pub eos_token_id: Option<Value>,
    /// Padding token.
    #[serde(default)]
    pub pad_token_id: Option<i64>,
}

/// The parts of a [`LehrConfig`]. The default is a Llama.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LehrParts {
    /// The kind of MLP.
    pub mlp: MlpKind,
    /// Whether norms have learned scales.
    pub norm_weights: bool,
    /// Whether a norm without a scale follows the embedding.
    pub embedding_norm: bool,
    /// Whether each head of queries and keys is normalised, without a learned scale.
    pub qk_norm: bool,
    /// Factor of normalised queries and of normalised keys.
    pub qk_norm_gain: f32,
    /// Whether the output projections of attention and MLP start at 0.
    pub zero_init_outputs: bool,
    /// The cap `c` of the logits, which become `c tanh(logit / c)`.
    pub final_logit_softcapping: Option<f32>,
    /// Whether each block scales the residual stream by a learned factor.
    pub residual_scalars: bool,
    /// Whether each block adds the embedded tokens times a learned factor.
    pub x0_scalars: bool,
    /// Whether every second block, and the last, adds a vector per token to its values.
    pub value_embeddings: bool,
    /// Rows of the table of vectors per pair of tokens, which each block adds to its input. 0: no
    /// table.
    pub bigram_rows: usize,
    /// Whether each embedding is mixed with that of the previous token.
    pub smear: bool,
    /// Whether the residual stream of the middle is taken off at the end, times a learned factor.
    pub backout: bool,
    /// Whether keys are rotated in the lower half of their channels only, and have the upper half
    /// of the previous token.
    pub key_offset: bool,
}

impl Default for LehrParts {
    fn default() -> Self {
        Self {
            mlp: MlpKind::SwiGlu,
            norm_weights: true,
            embedding_norm: false,
            qk_norm: false,
            qk_norm_gain: 1.0,
            zero_init_outputs: false,
            final_logit_softcapping: None,
            residual_scalars: false,
            x0_scalars: false,
            value_embeddings: false,
            bigram_rows: 0,
            smear: false,
            backout: false,
            key_offset: false,
        }
    }
}

impl FamilyConfig for LehrConfig {
    const MODEL_TYPE: &'static str = "lehr";
    const CLASS: &'static str = "LehrForCausalLM";

    fn validate(&self) -> Result<()> {
        if self.lehr_version != VERSION {
            let expected = format!("{VERSION}, or a lehr that knows this version");
            return Err(Error::config("lehr_version", self.lehr_version, expected));
        }
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        check_spec(&self.spec(), self.intermediate_size)?;
        self.check_parts()?;
        Rope::new(&self.rope()?, self.rotary_dim()).map(drop)
    }

    fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.hidden_size / n_heads.max(1),
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let (spec, parts, std) = (self.spec(), &self.parts, self.initializer_range);
        let norms = Norms {
            eps: self.rms_norm_eps,
            scale: if parts.norm_weights { NormScale::Weight } else { NormScale::None },
        };
        let rope = Rope::new(&self.rope()?, self.rotary_dim())?;
        let shape = decoder::Shape {
            embedding_norm: parts.embedding_norm,
            logit_softcap: parts.final_logit_softcapping,
            embedding_std: self.embedding_initializer_range.unwrap_or(std),
            head_std: self.head_initializer_range.unwrap_or(std),
            is_tied: self.tie_word_embeddings,
            parts: PartSettings {
                residual_scalars: parts.residual_scalars,
                x0_scalars: parts.x0_scalars,
                bigram_rows: parts.bigram_rows,
                smear: parts.smear,
                backout: parts.backout,
            },
            value_embeddings: parts.value_embeddings,
            key_offset: parts.key_offset,
            ..decoder::Shape::new(spec, rope, norms, std)
        };
        let d = spec.hidden_size;
        decoder::build(p, shape, |layer, mut p| {
            Ok(PreNormBlock {
                input_layernorm: norms.build(&mut p.at("input_layernorm"), d)?,
                attention: GroupedQueryAttention::build(
                    p.at("self_attn"),
                    layer,
                    &self.attention(layer),
                )?,
                post_attention_layernorm: norms.build(&mut p.at("post_attention_layernorm"), d)?,
                mlp: self.mlp(p.at("mlp"))?,
            })
        })
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        with_and_without_prefix(name)
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        Tie::of_decoder(&mut self.tie_word_embeddings)
    }
}

impl LehrConfig {
    /// The version that new models have.
    pub const VERSION: u32 = VERSION;

    /// Returns base and scaling of the rotary frequencies.
    ///
    /// # Errors
    /// If the kind of scaling is unknown or lacks a number.
    pub fn rope(&self) -> Result<RopeSettings> {
        self.rope.settings(self.max_position_embeddings)
    }

    /// Returns the number of channels of a head that are rotated.
    fn rotary_dim(&self) -> usize {
        let head_dim = self.spec().head_dim;
        if self.parts.key_offset { head_dim / 2 } else { head_dim }
    }

    fn check_parts(&self) -> Result<()> {
        let (parts, head_dim) = (&self.parts, self.spec().head_dim);
        check_softcap(parts.final_logit_softcapping)?;
        let gain = parts.qk_norm_gain;
        if !(gain.is_finite() && gain > 0.0) {
            return Err(Error::config("qk_norm_gain", gain, "a positive number"));
        }
        if parts.key_offset && !head_dim.is_multiple_of(4) {
            let expected = "heads with a width that is a multiple of 4";
            return Err(Error::config("key_offset", format!("heads of {head_dim}"), expected));
        }
        if parts.bigram_rows == 1 {
            return Err(Error::config("bigram_rows", 1, "0 (off) or at least 2"));
        }
        let has_gates = parts.smear || parts.value_embeddings;
        if has_gates && self.hidden_size < GATE_CHANNELS {
            let expected = format!("at least {GATE_CHANNELS}, which gates read");
            return Err(Error::config("hidden_size", self.hidden_size, expected));
        }
        Ok(())
    }

    /// Returns the standard deviation of a new output projection.
    fn out_std(&self) -> f32 {
        match self.parts.zero_init_outputs {
            true => 0.0,
            false => residual_std(self.initializer_range, self.num_hidden_layers),
        }
    }

    fn attention(&self, layer: usize) -> AttentionSettings {
        let (spec, parts) = (self.spec(), &self.parts);
        let norms = Norms { eps: self.rms_norm_eps, scale: NormScale::None };
        // Both the queries and the keys have the gain.
        let score_gain = if parts.qk_norm { parts.qk_norm_gain * parts.qk_norm_gain } else { 1.0 };
        AttentionSettings {
            qk_norms: parts.qk_norm.then_some(norms),
            score_gain,
            // The last block has one, and every second before it.
            value_embedding: parts.value_embeddings
                && (spec.n_layers - 1 - layer).is_multiple_of(2),
            key_offset: parts.key_offset,
            out_std: self.out_std(),
            ..AttentionSettings::new(spec, self.initializer_range)
        }
    }

    fn mlp(&self, mut p: LayerBuilder<'_>) -> Result<Mlp> {
        let shape = MlpShape {
            width: self.hidden_size,
            inner: self.intermediate_size,
            bias: false,
            activation: Activation::Silu,
            std: self.initializer_range,
            down_std: self.out_std(),
        };
        Ok(match self.parts.mlp {
            MlpKind::SwiGlu => Mlp::Separate(GatedMlp::build(&mut p, shape)?),
            MlpKind::Relu2 => {
                let shape = MlpShape { activation: Activation::Relu2, ..shape };
                Mlp::Plain(PlainMlp::build(&mut p, ["up_proj", "down_proj"], shape)?)
            }
        })
    }
}
