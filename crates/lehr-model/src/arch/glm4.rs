//! GLM-4-0414 (zai-org 2025): GLM-4-9B with two more norms in each block, on what attention and MLP
//! add to the residual stream ("sandwich" norms).

use lehr_tensor::ops::rope::RopeLayout;
use serde::{Deserialize, Serialize};

use super::decoder;
use super::glm::{Attention, GlmConfig, Mlp};
use super::{Architecture, FamilyConfig, Residual, Spec};
use crate::nn::{LayerBuilder, RmsNorm};
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

    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
        let shape = decoder::Shape {
            spec: self.spec(),
            rope: self.0.rope()?,
            rope_layout: RopeLayout::AdjacentPairs,
            rms_norm_eps: self.0.rms_norm_eps,
            std: self.0.initializer_range,
            is_tied: self.0.tie_word_embeddings,
        };
        decoder::build(p, shape, |index, p| Block::build(&self.0, index, p))
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
    fn build(config: &GlmConfig, layer: usize, mut p: LayerBuilder<'_>) -> Result<Self> {
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
        let a = self.self_attn.forward(normed, tokens, rope, cache)?;
        let a = self.post_self_attn_layernorm.forward(&a)?;
        let (x, h) = self.post_attention_layernorm.forward_add(x, &a)?;
        let m = self.post_mlp_layernorm.forward(&self.mlp.forward(&h)?)?;
        let (x, normed) = next_norm.forward_add(&x, &m)?;
        Ok(Residual { x, normed })
    }
}
