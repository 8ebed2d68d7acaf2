//! Mistral 7B and Nemo (Jiang et al. 2023, <https://arxiv.org/abs/2310.06825>): Llama's block
//! without biases, with a sliding window in every block of the first version. Weights are
//! `[out, in]`.

use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{Role, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decoder;
use super::heads::{FULL, Heads, SLIDING, check_windows};
use super::rope::Rope;
use super::{
    Architecture, FamilyConfig, Residual, RopeConfig, RopeSettings, Spec, Tokens, activation,
    check_spec, parse, residual_std, with_and_without_prefix,
};
use crate::nn::{GatedMlp, GatedMlpShape, LayerBuilder, Linear, LinearShape, RmsNorm};
use crate::{Error, KvCache, Result};

/// The settings of a Mistral `config.json`; what a file leaves out is as in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MistralConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; `None` means `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// How many tokens each token sees, itself among them; `None` means all before it.
    pub sliding_window: Option<usize>,
    /// The kind of each block. In this family all are of the kind that `sliding_window` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<String>>,
    /// The MLP's activation.
    pub hidden_act: String,
    /// How heads are rotated.
    #[serde(flatten)]
    pub rope: RopeConfig,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Last token of a text, or several of which any ends it.
    pub eos_token_id: Option<Value>,
    /// What fills short rows of a batch.
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
        // Transformers 4 reads null so; transformers 5 refuses it.
        if json.get("num_key_value_heads").is_some_and(Value::is_null) {
            json["num_key_value_heads"] =
                json.get("num_attention_heads").cloned().unwrap_or_else(|| 32.into());
        }
        parse(&json)
    }

    fn validate(&self) -> Result<()> {
        check_spec(&self.spec(), self.intermediate_size)?;
        check_windows(None, self.num_hidden_layers, self.sliding_window)?;
        // Transformers passes over these; models that alternate are of another family there.
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
        let shape = decoder::Shape {
            spec: self.spec(),
            rope: Rope::new(&self.rope()?, self.spec().head_dim)?,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: self.rms_norm_eps,
            std: self.initializer_range,
            is_tied: self.tie_word_embeddings,
        };
        decoder::build(p, shape, |index, p| Block::build(self, index, p))
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        with_and_without_prefix(name)
    }
}

impl MistralConfig {
    /// Base and scaling of the rotary frequencies, from wherever this file says them.
    ///
    /// # Errors
    /// If the kind of scaling is not known or lacks a number.
    pub fn rope(&self) -> Result<RopeSettings> {
        self.rope.settings(self.max_position_embeddings)
    }
}

struct Block {
    heads: Heads,
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    fn build(config: &MistralConfig, index: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        let spec = config.spec();
        let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
        let std = config.initializer_range;
        let out_std = residual_std(std, spec.n_layers);
        let input_layernorm = RmsNorm::build(&mut p.at("input_layernorm"), d, eps)?;
        let mut attn = p.at("self_attn");
        let mut project = |name, (n_in, n_out), std| {
            let shape = LinearShape::new(n_in, n_out);
            Linear::build(&mut attn.at(name), Role::Attention, shape, std)
        };
        Ok(Self {
            heads: Heads::new(&spec, index).with_window(config.sliding_window),
            input_layernorm,
            q_proj: project("q_proj", (d, q), std)?,
            k_proj: project("k_proj", (d, kv), std)?,
            v_proj: project("v_proj", (d, kv), std)?,
            o_proj: project("o_proj", (q, d), out_std)?,
            post_attention_layernorm: RmsNorm::build(
                &mut p.at("post_attention_layernorm"),
                d,
                eps,
            )?,
            mlp: GatedMlp::build(
                &mut p.at("mlp"),
                GatedMlpShape {
                    width: d,
                    inner: config.intermediate_size,
                    bias: false,
                    activation: activation("hidden_act", &config.hidden_act)?,
                    std,
                    down_std: out_std,
                },
            )?,
        })
    }

    fn attention(
        &self,
        h: &Tensor,
        tokens: &Tokens,
        rope: &RopeTable,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let q = self.heads.queries(&self.q_proj.forward(h)?)?.rope(rope)?;
        let k = self.heads.keys(&self.k_proj.forward(h)?)?.rope(rope)?;
        let v = self.heads.keys(&self.v_proj.forward(h)?)?;
        let a = self.heads.attend(&q, (&k, &v), tokens, cache)?;
        Ok(self.o_proj.forward(&a)?)
    }
}

impl decoder::Block for Block {
    fn input_layernorm(&self) -> &RmsNorm {
        &self.input_layernorm
    }

    fn forward(
        &self,
        Residual { x, normed }: &Residual,
        (tokens, rope): &decoder::Context,
        next_norm: &RmsNorm,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let a = self.attention(normed, tokens, rope, cache)?;
        let (x, h) = self.post_attention_layernorm.forward_add(x, &a)?;
        let m = self.mlp.forward(&h)?;
        let (x, normed) = next_norm.forward_add(&x, &m)?;
        Ok(Residual { x, normed })
    }
}
