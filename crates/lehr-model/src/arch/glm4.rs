//! GLM-4-0414 (zai-org 2025): GLM-4-9B with two more norms in each block, on what attention and MLP
//! add to the residual stream ("sandwich" norms).

use std::sync::Arc;

use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::{ParamBuilder, Tensor, no_grad};
use serde::{Deserialize, Serialize};

use super::glm::{Attention, GlmConfig, Mlp, build_head};
use super::rope::Rope;
use super::stack::{self, Stack};
use super::{Architecture, FamilyConfig, Spec, Tokens, check_room};
use crate::nn::{Embedding, Linear, RmsNorm};
use crate::{KvCache, Result};

/// The settings of a GLM-4-0414 `config.json`: those of GLM-4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glm4Config(pub GlmConfig);

impl FamilyConfig for Glm4Config {
    const MODEL_TYPE: &'static str = "glm4";
    const CLASS: &'static str = "Glm4ForCausalLM";

    fn validate(&self) -> Result<()> {
        self.0.validate()
    }

    fn spec(&self) -> Spec {
        self.0.spec()
    }

    fn build(&self, p: &mut ParamBuilder<'_>) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(Arc::new(Glm4::build(&self.0, p)?)))
    }
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_self_attn_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    post_mlp_layernorm: RmsNorm,
}

impl Block {
    fn build(config: &GlmConfig, layer: usize, mut p: ParamBuilder<'_>) -> Result<Self> {
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        let mut norm = |name| RmsNorm::build(&mut p.at(name), d, eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            post_self_attn_layernorm: norm("post_self_attn_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            post_mlp_layernorm: norm("post_mlp_layernorm")?,
            self_attn: Attention::build(config, layer, p.at("self_attn"))?,
            mlp: Mlp::build(config, p.at("mlp"))?,
        })
    }
}

/// The GLM-4-0414 decoder.
pub struct Glm4 {
    config: GlmConfig,
    rope: Rope,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Glm4 {
    fn build(config: &GlmConfig, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let (d, std) = (config.hidden_size, config.initializer_range);
        let mut root = p.at("model");
        let embed_tokens =
            Embedding::build(&mut root.at("embed_tokens"), config.vocab_size, d, std)?;
        let mut blocks = Vec::new();
        for index in 0..config.num_hidden_layers {
            blocks.push(Block::build(config, index, root.at("layers").at(index))?);
        }
        let norm = RmsNorm::build(&mut root.at("norm"), d, config.rms_norm_eps)?;
        let head = build_head(config, p, &embed_tokens)?;
        let (config, rope) = (config.clone(), config.rope()?);
        Ok(Self { config, rope, embed_tokens, blocks, norm, head })
    }

    fn forward(self: &Arc<Self>, tokens: &Tokens, cache: Option<&mut KvCache>) -> Result<Tensor> {
        check_room(tokens, cache.as_deref(), &self.spec())?;
        let rope = self.rope.table_of(&tokens.positions, RopeLayout::AdjacentPairs)?;
        let x = self.embed_tokens.forward(&tokens.ids)?;
        stack::run(self, x, &(tokens.clone(), rope), tokens.activations, cache)
    }
}

impl Stack for Glm4 {
    type Context = (Tokens, RopeTable);

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn read(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        Ok(self.blocks[index].input_layernorm.forward(x)?)
    }

    fn block(
        &self,
        index: usize,
        (x, h): (&Tensor, &Tensor),
        (tokens, rope): &Self::Context,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Tensor)> {
        let block = &self.blocks[index];
        let a = block.self_attn.forward(h, tokens, rope, cache)?;
        let a = block.post_self_attn_layernorm.forward(&a)?;
        let (x, h) = block.post_attention_layernorm.forward_add(x, &a)?;
        let m = block.post_mlp_layernorm.forward(&block.mlp.forward(&h)?)?;
        let next_norm = self.blocks.get(index + 1).map_or(&self.norm, |next| &next.input_layernorm);
        Ok(next_norm.forward_add(&x, &m)?)
    }
}

impl Architecture for Arc<Glm4> {
    fn hidden(&self, tokens: &Tokens, cache: Option<&mut KvCache>) -> Result<Tensor> {
        match cache {
            None => self.forward(tokens, None),
            Some(cache) => no_grad(|| self.forward(tokens, Some(cache))),
        }
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn spec(&self) -> Spec {
        self.config.spec()
    }
}
