//! Mistral 7B and Nemo (Jiang et al. 2023, <https://arxiv.org/abs/2310.06825>): Llama's block
//! without biases, with a sliding window in every block of the first version. Weights are
//! `[out, in]`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::prenorm::{AttentionSettings, BlockSettings, Norms, PreNormBlock};
use super::rope::Rope;
use super::windows::{FULL, SLIDING, check_windows};
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, activation, check_spec, parse,
    residual_std, with_and_without_prefix,
};
use crate::nn::{LayerBuilder, MlpShape};
use crate::{Error, Result};

/// The settings of a Mistral `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MistralConfig {
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
    /// Number of tokens that each token attends to, including itself; `None` means all earlier
    /// ones.
    pub sliding_window: Option<usize>,
    /// The kind of each block. All blocks have the kind that `sliding_window` implies.
    #[serde(skip_serializing_if = "Option::is_none")]
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

impl Default for MistralConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 14_336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: None,
            max_position_embeddings: 4096 * 32,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            tie_word_embeddings: false,
            sliding_window: Some(4096),
            layer_types: None,
            hidden_act: "silu".to_owned(),
            rope: RopeConfig::default(),
            bos_token_id: Some(1),
            eos_token_id: Some(2.into()),
            pad_token_id: None,
        }
    }
}

impl FamilyConfig for MistralConfig {
    const MODEL_TYPE: &'static str = "mistral";
    const CLASS: &'static str = "MistralForCausalLM";

    fn read(json: &Value) -> Result<Self> {
        let mut json = json.clone();
        // Transformers 4 reads null as absent; transformers 5 rejects it.
        if json.get("num_key_value_heads").is_some_and(Value::is_null) {
            json["num_key_value_heads"] =
                json.get("num_attention_heads").cloned().unwrap_or_else(|| 32.into());
        }
        parse(&json)
    }

    fn validate(&self) -> Result<()> {
        check_spec(&self.spec(), self.intermediate_size)?;
        check_windows(None, self.num_hidden_layers, self.sliding_window)?;
        // Transformers ignores these keys; there, models with alternating kinds are other families.
        let kind = if self.sliding_window.is_some() { SLIDING } else { FULL };
        if let Some(other) = self.layer_types.iter().flatten().find(|t| *t != kind) {
            return Err(Error::config("layer_types", other, format!("{kind} only in this family")));
        }
        activation("hidden_act", &self.hidden_act)?;
        Rope::new(&self.rope()?, self.spec().head_dim).map(drop)
    }

    fn spec(&self) -> Spec {
        let n_heads = self.num_attention_heads;
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads,
            n_kv_heads: self.num_key_value_heads,
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

impl MistralConfig {
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
                window: self.sliding_window,
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
