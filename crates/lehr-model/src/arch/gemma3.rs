//! The text models of Gemma 3 (Gemma team 2025, <https://arxiv.org/abs/2503.19786>): norms before
//! and after each sub-layer that scale by `1 + weight`, normalised queries and keys, a GeGLU MLP,
//! embeddings times √D. Blocks with and without a window have separate rotary frequencies. Weights
//! are `[out, in]`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::decoder;
use super::prenorm::{
    AttentionSettings, GroupedQueryAttention, Mlp, NormScale, Norms, SandwichBlock,
};
use super::rope::Rope;
use super::windows::{self, FULL, SLIDING, check_windows};
use super::{
    Architecture, FamilyConfig, RopeConfig, RopeSettings, Spec, Tie, activation, check_spec, parse,
    positive, residual_std, with_and_without_prefix,
};
use crate::nn::{GatedMlp, LayerBuilder, MlpShape};
use crate::{Error, Result};

/// The settings of a Gemma 3 `config.json`. Missing keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gemma3Config {
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
    /// The MLP's activation.
    pub hidden_activation: String,
    /// The scores are divided by the square root of this.
    pub query_pre_attn_scalar: usize,
    /// Number of tokens in a window, including the token itself.
    pub sliding_window: Option<usize>,
    /// The kind of each block; `None` means what `sliding_window_pattern` says.
    pub layer_types: Option<Vec<String>>,
    /// Period of the blocks without a window: every block of this number has none. `None` means 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window_pattern: Option<usize>,
    /// Logit cap `c`: logits become `c tanh(logit / c)`.
    pub final_logit_softcapping: Option<f32>,
    /// Cap of the scores. Only `None` is supported, as in all Gemma 3 models.
    pub attn_logit_softcapping: Option<f32>,
    /// Whether tokens attend to later ones. Only false is supported, as in all language models.
    pub use_bidirectional_attention: Option<bool>,
    /// Rotary settings, per kind of block or for blocks without a window only.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// Base of the frequencies in blocks with a window (transformers 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_local_base_freq: Option<f64>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, or a list of such tokens.
    pub eos_token_id: Option<Value>,
    /// Padding token.
    pub pad_token_id: Option<i64>,
}

impl Default for Gemma3Config {
    fn default() -> Self {
        Self {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            tie_word_embeddings: true,
            attention_bias: false,
            hidden_activation: "gelu_pytorch_tanh".to_owned(),
            query_pre_attn_scalar: 256,
            sliding_window: Some(4096),
            layer_types: None,
            sliding_window_pattern: None,
            final_logit_softcapping: None,
            attn_logit_softcapping: None,
            use_bidirectional_attention: None,
            rope: RopeConfig::default(),
            rope_local_base_freq: None,
            bos_token_id: Some(2),
            eos_token_id: Some(1.into()),
            pad_token_id: Some(0),
        }
    }
}

impl FamilyConfig for Gemma3Config {
    const MODEL_TYPE: &'static str = "gemma3_text";
    const CLASS: &'static str = "Gemma3ForCausalLM";

    fn recognises(json: &Value) -> bool {
        let model_type = json.get("model_type").and_then(Value::as_str);
        [Some(Self::MODEL_TYPE), Some(WITH_IMAGES)].contains(&model_type)
    }

    fn read(json: &Value) -> Result<Self> {
        let mut json = json.clone();
        if json.get("model_type").and_then(Value::as_str) == Some(WITH_IMAGES) {
            json = text_config(&json)?;
        }
        // The name in files of transformers 4.53 and later, which also have `layer_types`.
        if let Some(pattern) = json.get("_sliding_window_pattern").cloned()
            && let Some(map) = json.as_object_mut()
        {
            map.entry("sliding_window_pattern").or_insert(pattern);
        }
        parse(&json)
    }

    fn validate(&self) -> Result<()> {
        check_spec(&self.spec(), self.intermediate_size)?;
        if let Some(cap) = self.attn_logit_softcapping {
            return Err(Error::config("attn_logit_softcapping", cap, "null: no cap of scores"));
        }
        if self.use_bidirectional_attention == Some(true) {
            return Err(Error::config("use_bidirectional_attention", true, "false"));
        }
        if let Some(cap) = self.final_logit_softcapping.filter(|cap| *cap <= 0.0) {
            return Err(Error::config("final_logit_softcapping", cap, "a positive number"));
        }
        positive("query_pre_attn_scalar", self.query_pre_attn_scalar)?;
        positive("sliding_window_pattern", self.pattern())?;
        check_windows(self.layer_types.as_deref(), self.num_hidden_layers, self.sliding_window)?;
        self.window(0)?;
        activation("hidden_activation", &self.hidden_activation)?;
        for layer_type in [FULL, SLIDING] {
            Rope::new(&self.rope(layer_type)?, self.head_dim)?;
        }
        Ok(())
    }

    fn spec(&self) -> Spec {
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let spec = self.spec();
        let rope = |layer_type| Rope::new(&self.rope(layer_type)?, spec.head_dim);
        let shape = decoder::Shape {
            // The order of `GLOBAL` and `LOCAL`.
            ropes: vec![rope(FULL)?, rope(SLIDING)?],
            // The reference rounds √D to its computing precision, here f32.
            embedding_scale: Some((spec.hidden_size as f64).sqrt() as f32),
            logit_softcap: self.final_logit_softcapping,
            is_tied: self.tie_word_embeddings,
            ..decoder::Shape::new(spec, rope(FULL)?, self.norms(), self.initializer_range)
        };
        decoder::build(p, shape, |layer, p| self.block(layer, p))
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        // Files with images have two namings: the published one and that of transformers 5.
        let inner = name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
        let with_images = inner.into_iter().chain([format!("language_model.{name}")]);
        with_and_without_prefix(name).into_iter().chain(with_images).collect()
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        Tie::of_decoder(&mut self.tie_word_embeddings)
    }
}

/// The `model_type` of models with images. They contain a text model.
const WITH_IMAGES: &str = "gemma3";

/// Extracts the text model's settings from the file of a model with images.
fn text_config(json: &Value) -> Result<Value> {
    let Some(text) = json.get("text_config").filter(|text| text.is_object()) else {
        return Err(Error::config("text_config", "missing", "the settings of the text model"));
    };
    let mut text = text.clone();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"] {
        if let Some(value) = json.get(key).filter(|value| !value.is_null()) {
            text[key] = value.clone();
        }
    }
    Ok(text)
}

impl Gemma3Config {
    fn pattern(&self) -> usize {
        self.sliding_window_pattern.unwrap_or(6)
    }

    /// Returns the window of a block. Blocks without one use the other rotation.
    fn window(&self, layer: usize) -> Result<Option<usize>> {
        let kind = if (layer + 1).is_multiple_of(self.pattern()) { FULL } else { SLIDING };
        match &self.layer_types {
            Some(layer_types) => windows::window(layer_types, layer, self.sliding_window),
            None => windows::window(&[kind.to_owned()], 0, self.sliding_window),
        }
    }

    /// Returns base and scaling of the rotary frequencies for one kind of block: `full_attention`
    /// or `sliding_attention`.
    ///
    /// # Errors
    /// If the kind of scaling is unknown or lacks a number.
    pub fn rope(&self, layer_type: &str) -> Result<RopeSettings> {
        self.rope.check_whole_head()?;
        let both = self.rope.rope_parameters.clone().unwrap_or_default();
        if !both.is_empty() && !both.contains_key(FULL) && !both.contains_key(SLIDING) {
            let expected = "one map each in full_attention and sliding_attention";
            return Err(Error::config("rope_parameters", "one map for all blocks", expected));
        }
        let mut parameters = match both.get(layer_type) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => {
                return Err(Error::config("rope_parameters", other, "a map by kind of block"));
            }
        };
        // The reference reads this key beside the maps, not inside them.
        parameters.remove("truncate");
        parameters.extend(both.get("truncate").map(|t| ("truncate".to_owned(), t.clone())));
        let theta = if layer_type == FULL {
            parameters.extend(self.rope.rope_scaling.clone().unwrap_or_default());
            self.rope.rope_theta.unwrap_or(1_000_000.0)
        } else {
            self.rope_local_base_freq.unwrap_or(10_000.0)
        };
        RopeSettings::read(&parameters, theta, self.max_position_embeddings)
    }

    fn norms(&self) -> Norms {
        Norms { eps: self.rms_norm_eps, scale: NormScale::OnePlusWeight }
    }

    /// Builds block `layer`.
    fn block(&self, layer: usize, mut p: LayerBuilder<'_>) -> Result<SandwichBlock> {
        let (spec, std) = (self.spec(), self.initializer_range);
        let (d, window, norms) = (spec.hidden_size, self.window(layer)?, self.norms());
        let attention = AttentionSettings {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            window,
            qk_norms: Some(norms),
            scale_width: self.query_pre_attn_scalar,
            rope: if window.is_some() { LOCAL } else { GLOBAL },
            ..AttentionSettings::new(spec, std)
        };
        let mlp = MlpShape {
            width: d,
            inner: self.intermediate_size,
            bias: false,
            activation: activation("hidden_activation", &self.hidden_activation)?,
            std,
            down_std: residual_std(std, spec.n_layers),
        };
        let norm = |mut p: LayerBuilder<'_>| norms.build(&mut p, d);
        Ok(SandwichBlock {
            before_attention: norm(p.at("input_layernorm"))?,
            attention: GroupedQueryAttention::build(p.at("self_attn"), layer, &attention)?,
            after_attention: norm(p.at("post_attention_layernorm"))?,
            before_mlp: norm(p.at("pre_feedforward_layernorm"))?,
            mlp: Mlp::Separate(GatedMlp::build(&mut p.at("mlp"), mlp)?),
            after_mlp: norm(p.at("post_feedforward_layernorm"))?,
        })
    }
}

/// Index of the rotation of blocks without a window.
const GLOBAL: usize = 0;
/// Index of the rotation of blocks with a window.
const LOCAL: usize = 1;
