//! nanochat as transformers has it (Karpathy 2025, <https://github.com/karpathy/nanochat>): Llama's
//! block with RMS norms that have no weights, also after the embedding and, after rotation, over
//! each head of queries and keys; an MLP with ReLU² and no gate; capped logits. Heads are rotated
//! by negative angles. Weights are `[out, in]`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::prenorm::{
    AttentionSettings, GroupedQueryAttention, Mlp, NormScale, Norms, PreNormBlock,
};
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, activation, check_spec,
    divides, residual_std, with_and_without_prefix,
};
use crate::nn::{LayerBuilder, MlpShape, PlainMlp};
use crate::{Error, Result};

/// The settings of a nanochat `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NanoChatConfig {
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
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// The MLP's activation.
    pub hidden_act: String,
    /// The cap `c` of the logits, which become `c tanh(logit / c)`.
    pub final_logit_softcapping: Option<f32>,
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

impl Default for NanoChatConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50_304,
            hidden_size: 768,
            intermediate_size: 8192,
            num_hidden_layers: 12,
            num_attention_heads: 6,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            tie_word_embeddings: false,
            attention_bias: false,
            hidden_act: "relu2".to_owned(),
            final_logit_softcapping: Some(15.0),
            rope: RopeConfig::default(),
            bos_token_id: Some(0),
            eos_token_id: Some(1.into()),
            pad_token_id: Some(1),
        }
    }
}

impl FamilyConfig for NanoChatConfig {
    const MODEL_TYPE: &'static str = "nanochat";
    const CLASS: &'static str = "NanoChatForCausalLM";

    fn validate(&self) -> Result<()> {
        if self.head_dim.is_none() {
            let heads = self.num_attention_heads;
            divides("num_attention_heads", heads, "hidden_size", self.hidden_size)?;
        }
        check_spec(&self.spec(), self.intermediate_size)?;
        activation("hidden_act", &self.hidden_act)?;
        check_softcap(self.final_logit_softcapping)?;
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
        let (spec, std) = (self.spec(), self.initializer_range);
        let norms = Norms { eps: self.rms_norm_eps, scale: NormScale::None };
        let rope = Rope::new(&self.rope()?, spec.head_dim)?.reversed();
        let shape = decoder::Shape {
            embedding_norm: true,
            logit_softcap: self.final_logit_softcapping,
            is_tied: self.tie_word_embeddings,
            ..decoder::Shape::new(spec, rope, norms, std)
        };
        let attention = AttentionSettings {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            qk_norms: Some(norms),
            norm_after_rope: true,
            ..AttentionSettings::new(spec, std)
        };
        let d = spec.hidden_size;
        let mlp = MlpShape {
            width: d,
            inner: self.intermediate_size,
            bias: false,
            activation: activation("hidden_act", &self.hidden_act)?,
            std,
            down_std: residual_std(std, spec.n_layers),
        };
        decoder::build(p, shape, |layer, mut p| {
            Ok(PreNormBlock {
                input_layernorm: norms.build(&mut p.at("input_layernorm"), d)?,
                attention: GroupedQueryAttention::build(p.at("self_attn"), layer, &attention)?,
                post_attention_layernorm: norms.build(&mut p.at("post_attention_layernorm"), d)?,
                mlp: Mlp::Plain(PlainMlp::build(&mut p.at("mlp"), ["fc1", "fc2"], mlp)?),
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

impl NanoChatConfig {
    /// Returns base and scaling of the rotary frequencies, in whichever spelling the file has.
    ///
    /// # Errors
    /// If the kind of scaling is unknown or lacks a number.
    pub fn rope(&self) -> Result<RopeSettings> {
        self.rope.settings(self.max_position_embeddings)
    }
}

/// Checks that a cap of the logits, if there is one, is a positive number.
pub(super) fn check_softcap(cap: Option<f32>) -> Result<()> {
    match cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        Some(cap) => {
            let expected = "a positive number, or null for logits without a cap";
            Err(Error::config("final_logit_softcapping", cap, expected))
        }
        None => Ok(()),
    }
}
