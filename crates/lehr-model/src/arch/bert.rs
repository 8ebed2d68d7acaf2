//! BERT (Devlin et al. 2018): an encoder with learned positions, bidirectional attention, LayerNorm
//! after each sub-layer and a GELU MLP. The masked-language-model head is a transform and the word
//! embedding with a bias. Weights are `[out, in]`.

use std::sync::Arc;

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::{Init, Role, Tensor};
use serde::{Deserialize, Serialize};

use super::attention::{Attention, AttentionContext, Qkv};
use super::stack::{self, Stack};
use super::{Architecture, FamilyConfig, Pass, Residual, Spec, Tie, Tokens, divides, positive};
use crate::nn::{Embedding, LayerBuilder, LayerNorm, Linear, LinearShape};
use crate::{Error, KvCache, Result};

/// The settings of a BERT `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of positions in the learned table.
    pub max_position_embeddings: usize,
    /// Number of segment types. All tokens get the first type.
    #[serde(default = "default_types")]
    pub type_vocab_size: usize,
    /// The MLP's activation: `gelu`, `gelu_new`, `relu` or `silu`.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Added to the variance in every norm.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f32,
    /// Standard deviation of new weights.
    #[serde(default = "default_std")]
    pub initializer_range: f32,
    /// Kind of position encoding. Only `absolute`, a learned table, is supported.
    #[serde(default = "default_positions")]
    pub position_embedding_type: String,
    /// Whether attention is causal, as in decoders based on BERT. Only `false` is supported.
    #[serde(default)]
    pub is_decoder: bool,
    /// Whether the head is tied to the word embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Padding token.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// The class in `transformers`, which says which heads are present.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<String>,
    /// Heads found in the weights. They take precedence over `architectures`.
    #[serde(skip)]
    found: Option<Parts>,
}

/// Heads on the encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts {
    /// The masked-language-model head, `cls.predictions`.
    head: bool,
    /// The layer between the first token and a classifier, `bert.pooler`.
    pooler: bool,
}

fn default_types() -> usize {
    2
}
fn default_activation() -> String {
    "gelu".to_owned()
}
fn default_eps() -> f32 {
    1e-12
}
fn default_std() -> f32 {
    0.02
}
fn default_positions() -> String {
    "absolute".to_owned()
}
fn yes() -> bool {
    true
}

/// The encoder alone.
const ENCODER: &str = "BertModel";

impl FamilyConfig for BertConfig {
    const MODEL_TYPE: &'static str = "bert";
    const CLASS: &'static str = "BertForMaskedLM";

    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            positive(key, value)?;
        }
        let heads = self.num_attention_heads;
        divides("num_attention_heads", heads, "hidden_size", self.hidden_size)?;
        if self.position_embedding_type != "absolute" {
            let found = &self.position_embedding_type;
            return Err(Error::config("position_embedding_type", found, "absolute"));
        }
        if self.is_decoder {
            return Err(Error::config("is_decoder", true, "false: an encoder"));
        }
        self.activation().map(drop)
    }

    fn spec(&self) -> Spec {
        Spec {
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads.max(1),
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(Arc::new(Bert::build(self, p)?)))
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        let head = "cls.predictions.decoder.weight";
        let embedding = "bert.embeddings.word_embeddings.weight";
        Some(Tie { is_tied: &mut self.tie_word_embeddings, head, embedding })
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        // The encoder alone is published without the prefix; the first files use other norm names.
        let mut names = vec![name.to_owned()];
        names.extend(name.strip_prefix("bert.").map(str::to_owned));
        if name == "cls.predictions.bias" {
            names.push("cls.predictions.decoder.bias".to_owned());
        }
        let old = |name: &String| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            name.replace("LayerNorm.bias", "LayerNorm.beta")
        };
        let old: Vec<_> = names.iter().map(old).filter(|old| !names.contains(old)).collect();
        names.extend(old);
        names
    }

    fn fit_to(&mut self, has: &dyn Fn(&str) -> bool) {
        let any = |name: &str| self.checkpoint_names(name).iter().any(|name| has(name));
        let head = any("cls.predictions.transform.dense.weight");
        self.found = Some(Parts { head, pooler: any("bert.pooler.dense.weight") });
    }

    fn class(&self) -> &'static str {
        if self.parts().head { Self::CLASS } else { ENCODER }
    }
}

impl BertConfig {
    fn activation(&self) -> Result<Activation> {
        match self.hidden_act.as_str() {
            "gelu" => Ok(Activation::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(Error::config("hidden_act", other, "gelu, gelu_new, relu or silu")),
        }
    }

    fn parts(&self) -> Parts {
        let by_class = || {
            let class = self.architectures.first().map_or(Self::CLASS, String::as_str);
            let head = ["ForMaskedLM", "ForPreTraining"].iter().any(|end| class.ends_with(end));
            Parts { head, pooler: !class.ends_with("ForMaskedLM") }
        };
        self.found.unwrap_or_else(by_class)
    }
}

struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: Attention,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Block {
    fn build(config: &BertConfig, layer: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let (eps, std) = (config.layer_norm_eps, config.initializer_range);
        let linear = |mut p: LayerBuilder<'_>, role, shape: LinearShape| {
            Linear::build(&mut p, role, shape.with_bias(true), std)
        };
        let (attn, mlp) = (Role::Attention, Role::Mlp);
        let square = LinearShape::new(d, d);
        let (up, down) = (LinearShape::new(d, inner), LinearShape::new(inner, d));
        let mut attention = p.at("attention");
        let scale = 1.0 / (config.spec().head_dim as f32).sqrt();
        Ok(Self {
            attention: Attention::new(&config.spec(), layer).with_scale(scale),
            query: linear(attention.at("self").at("query"), attn, square)?,
            key: linear(attention.at("self").at("key"), attn, square)?,
            value: linear(attention.at("self").at("value"), attn, square)?,
            attention_output: linear(attention.at("output").at("dense"), attn, square)?,
            attention_norm: LayerNorm::build(&mut attention.at("output").at("LayerNorm"), d, eps)?,
            intermediate: linear(p.at("intermediate").at("dense"), mlp, up)?,
            output: linear(p.at("output").at("dense"), mlp, down)?,
            output_norm: LayerNorm::build(&mut p.at("output").at("LayerNorm"), d, eps)?,
        })
    }

    fn attention(&self, x: &Tensor, context: &AttentionContext) -> Result<Tensor> {
        let q = self.attention.queries(&self.query.forward(x)?)?;
        let k = self.attention.keys(&self.key.forward(x)?)?;
        let v = self.attention.keys(&self.value.forward(x)?)?;
        let a = self.attention.forward(&Qkv { q, k, v }, context, None)?;
        Ok(self.attention_output.forward(&a)?)
    }
}

/// The head that predicts masked tokens, `decoder(norm(act(dense(h))))`.
struct Head {
    dense: Linear,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    fn build(config: &BertConfig, words: &Embedding, mut p: LayerBuilder<'_>) -> Result<Self> {
        let (d, v, std) = (config.hidden_size, config.vocab_size, config.initializer_range);
        let decoder = match config.tie_word_embeddings {
            true => Linear::tied(&mut p.at("decoder"), words)?,
            false => Linear::build(&mut p.at("decoder"), Role::Head, LinearShape::new(d, v), std)?,
        };
        let bias = p.param("bias", Role::Bias, [v], Init::Constant(0.0))?;
        let mut p = p.at("transform");
        let square = LinearShape::new(d, d).with_bias(true);
        let dense = Linear::build(&mut p.at("dense"), Role::Transform, square, std)?;
        let norm = LayerNorm::build(&mut p.at("LayerNorm"), d, config.layer_norm_eps)?;
        Ok(Self { dense, norm, decoder: decoder.with_bias(bias) })
    }
}

/// The BERT encoder, post-norm: `h = LN₁(x + Attention(x)); y = LN₂(h + MLP(h))`.
pub struct Bert {
    config: BertConfig,
    activation: Activation,
    words: Embedding,
    positions: Embedding,
    token_types: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
    /// Used by classifiers only.
    pooler: Option<Linear>,
    head: Option<Head>,
}

impl Bert {
    fn build(config: &BertConfig, p: &mut LayerBuilder<'_>) -> Result<Self> {
        let (d, std) = (config.hidden_size, config.initializer_range);
        let (eps, parts) = (config.layer_norm_eps, config.parts());
        let mut root = p.at("bert");
        let mut table = |name, role, n_rows| {
            Embedding::build(&mut root.at("embeddings").at(name), role, n_rows, d, std)
        };
        let (v, t) = (config.vocab_size, config.max_position_embeddings);
        let words = table("word_embeddings", Role::TokenEmbedding, v)?;
        let positions = table("position_embeddings", Role::PositionEmbedding, t)?;
        let token_types =
            table("token_type_embeddings", Role::TokenTypeEmbedding, config.type_vocab_size)?;
        let norm = LayerNorm::build(&mut root.at("embeddings").at("LayerNorm"), d, eps)?;
        let mut blocks = Vec::new();
        for index in 0..config.num_hidden_layers {
            blocks.push(Block::build(config, index, root.at("encoder").at("layer").at(index))?);
        }
        let square = LinearShape::new(d, d).with_bias(true);
        let pooler = match parts.pooler {
            true => {
                let mut p = root.at("pooler");
                Some(Linear::build(&mut p.at("dense"), Role::Transform, square, std)?)
            }
            false => None,
        };
        let head = match parts.head {
            true => Some(Head::build(config, &words, p.at("cls").at("predictions"))?),
            false => None,
        };
        let (config, activation) = (config.clone(), config.activation()?);
        Ok(Self { config, activation, words, positions, token_types, norm, blocks, pooler, head })
    }

    fn embed(&self, tokens: &Tokens) -> Result<Tensor> {
        let types = Tensor::from_ids(&vec![0; tokens.ids.ids().len()], tokens.ids.shape())?;
        let x = self.words.forward(&tokens.ids)?.add(&self.token_types.forward(&types)?)?;
        Ok(self.norm.forward_add(&x, &self.positions.forward(&tokens.positions)?)?.1)
    }
}

impl Stack for Bert {
    type Context = AttentionContext;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn first_norm(&self, _: usize, x: &Tensor) -> Result<Tensor> {
        // Post-norm: the residual stream is already normalised.
        Ok(x.clone())
    }

    fn block(
        &self,
        index: usize,
        Residual { x, normed }: &Residual,
        context: &AttentionContext,
        _: Option<&mut KvCache>,
    ) -> Result<Residual> {
        let block = &self.blocks[index];
        let a = block.attention(normed, context)?;
        let (_, x) = block.attention_norm.forward_add(x, &a)?;
        let m = Linear::feed_forward(&x, &block.intermediate, self.activation, &block.output)?;
        let (_, x) = block.output_norm.forward_add(&x, &m)?;
        Ok(Residual::already_normed(x))
    }
}

impl Architecture for Arc<Bert> {
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor> {
        if pass.cache.is_some() {
            let class = self.config.class();
            return Err(Error::NotCausal { doing: "continuing a text", class });
        }
        pass.check(&self.spec())?;
        let tokens = pass.tokens;
        let context = AttentionContext::bidirectional(&pass)?;
        stack::run(self, self.embed(tokens)?, &context, pass)
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref().map(|head| &head.decoder)
    }

    fn pooler(&self) -> Option<&Linear> {
        self.pooler.as_ref()
    }

    fn head_input(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(Head { dense, norm, .. }) => {
                Ok(norm.forward(&dense.forward(hidden)?.activation(self.activation)?)?)
            }
            None => Ok(hidden.clone()),
        }
    }

    fn is_causal(&self) -> bool {
        false
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
