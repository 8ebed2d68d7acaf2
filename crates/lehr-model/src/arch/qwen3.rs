//! Qwen 3, the dense models (Yang et al. 2025, <https://arxiv.org/abs/2505.09388>): Llama's block
//! with an RMSNorm over each head of queries and keys before they are rotated. Weights are
//! `[out, in]`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::prenorm::{AttentionSettings, BlockSettings, Norms, PreNormBlock};
use super::rope::Rope;
use super::windows::{self, check_windows};
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, activation, check_spec,
    residual_std, with_and_without_prefix,
};
use crate::Result;
use crate::nn::{LayerBuilder, MlpShape};

/// The settings of a Qwen3 `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Qwen3Config {
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
    /// Width of a head, independent of that of the residual stream.
    pub head_dim: usize,
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
    /// Whether some blocks have a window.
    pub use_sliding_window: bool,
    /// Number of tokens in the window, including the token itself.
    pub sliding_window: Option<usize>,
    /// Index of the first block with a window.
    pub max_window_layers: usize,
    /// The kind of each block; `None` means what `max_window_layers` says.
    pub layer_types: Option<Vec<String>>,
    /// The MLP's activation.
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

impl Default for Qwen3Config {
    fn default() -> Self {
        Self {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(32),
            head_dim: 128,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            tie_word_embeddings: false,
            attention_bias: false,
            use_sliding_window: false,
            sliding_window: Some(4096),
            max_window_layers: 28,
            layer_types: None,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::default(),
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        }
    }
}

impl FamilyConfig for Qwen3Config {
    const MODEL_TYPE: &'static str = "qwen3";
    const CLASS: &'static str = "Qwen3ForCausalLM";

    fn validate(&self) -> Result<()> {
        check_spec(&self.spec(), self.intermediate_size)?;
        check_windows(self.layer_types.as_deref(), self.num_hidden_layers, self.view())?;
        activation("hidden_act", &self.hidden_act)?;
        Rope::new(&self.rope()?, self.spec().head_dim).map(drop)
    }

    fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            head_dim: self.head_dim,
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
        decoder::build(p, shape, |layer, p| PreNormBlock::build(p, layer, &self.block(layer)?))
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        with_and_without_prefix(name)
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        Tie::of_decoder(&mut self.tie_word_embeddings)
    }
}

impl Qwen3Config {
    /// Returns base and scaling of the rotary frequencies, in whichever spelling the file has.
    ///
    /// # Errors
    /// If the kind of scaling is unknown or lacks a number.
    pub fn rope(&self) -> Result<RopeSettings> {
        self.rope.settings(self.max_position_embeddings)
    }

    /// Returns the width of the windows, if any block has one.
    fn view(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.use_sliding_window)
    }

    fn window(&self, layer: usize) -> Result<Option<usize>> {
        match &self.layer_types {
            Some(layer_types) => windows::window(layer_types, layer, self.view()),
            None => Ok(self.view().filter(|_| layer >= self.max_window_layers)),
        }
    }

    /// Returns the choices of a block.
    fn block(&self, layer: usize) -> Result<BlockSettings> {
        let (spec, std) = (self.spec(), self.initializer_range);
        let norms = Norms::new(self.rms_norm_eps);
        Ok(BlockSettings {
            attention: AttentionSettings {
                qkv_bias: self.attention_bias,
                out_bias: self.attention_bias,
                window: self.window(layer)?,
                qk_norms: Some(norms),
                ..AttentionSettings::new(spec, std)
            },
            norms,
            mlp: MlpShape {
                width: spec.hidden_size,
                inner: self.intermediate_size,
                bias: false,
                activation: activation("hidden_act", &self.hidden_act)?,
                std,
                down_std: residual_std(std, spec.n_layers),
            },
        })
    }
}
