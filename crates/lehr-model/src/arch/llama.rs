//! Llama 2 and 3 (Touvron et al. 2023, <https://arxiv.org/abs/2307.09288>; Llama team 2024,
//! <https://arxiv.org/abs/2407.21783>): RoPE, RMSNorm before each sub-layer, grouped-query
//! attention, a SwiGLU MLP. Weights are `[out, in]`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::prenorm::{AttentionSettings, BlockSettings, Norms, PreNormBlock};
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, activation, check_spec,
    divides, residual_std, with_and_without_prefix,
};
use crate::Result;
use crate::nn::{LayerBuilder, MlpShape};

/// The settings of a Llama `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
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
    /// Number of key-value heads; `None` means that of query heads.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `None` means `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Whether the head is tied to the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the attention's projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// The MLP's activation: `silu`, or a GELU for a GeGLU MLP.
    pub hidden_act: String,
    /// Rotary settings.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, or a list of such tokens.
    pub eos_token_id: Option<Value>,
    /// Padding token.
    pub pad_token_id: Option<i64>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::default(),
            bos_token_id: Some(1),
            eos_token_id: Some(2.into()),
            pad_token_id: None,
        }
    }
}

impl FamilyConfig for LlamaConfig {
    const MODEL_TYPE: &'static str = "llama";
    const CLASS: &'static str = "LlamaForCausalLM";

    fn validate(&self) -> Result<()> {
        if self.head_dim.is_none() {
            let heads = self.num_attention_heads;
            divides("num_attention_heads", heads, "hidden_size", self.hidden_size)?;
        }
        check_spec(&self.spec(), self.intermediate_size)?;
        activation("hidden_act", &self.hidden_act)?;
        Rope::new(&self.rope()?, self.spec().head_dim).map(drop)
    }

    fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / n_heads.max(1)),
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let (spec, norms) = (self.spec(), Norms::new(self.rms_norm_eps));
        let rope = Rope::new(&self.rope()?, spec.head_dim)?;
        let shape = decoder::Shape {
            is_tied: self.tie_word_embeddings,
            ..decoder::Shape::new(spec, rope, norms, self.initializer_range)
        };
        decoder::build(p, shape, |layer, p| PreNormBlock::build(p, layer, &self.block()?))
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        with_and_without_prefix(name)
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        Tie::of_decoder(&mut self.tie_word_embeddings)
    }
}

impl LlamaConfig {
    /// Returns base and scaling of the rotary frequencies, in whichever spelling the file has.
    ///
    /// # Errors
    /// If the kind of scaling is unknown or lacks a number.
    pub fn rope(&self) -> Result<RopeSettings> {
        self.rope.settings(self.max_position_embeddings)
    }

    /// Returns the choices of a block.
    fn block(&self) -> Result<BlockSettings> {
        let (spec, std) = (self.spec(), self.initializer_range);
        let norms = Norms::new(self.rms_norm_eps);
        Ok(BlockSettings {
            attention: AttentionSettings {
                qkv_bias: self.attention_bias,
                out_bias: self.attention_bias,
                ..AttentionSettings::new(spec, std)
            },
            norms,
            mlp: MlpShape {
                width: spec.hidden_size,
                inner: self.intermediate_size,
                bias: self.mlp_bias,
                activation: activation("hidden_act", &self.hidden_act)?,
                std,
                down_std: residual_std(std, spec.n_layers),
            },
        })
    }
}
