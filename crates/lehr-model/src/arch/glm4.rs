//! GLM-4-0414 (zai-org 2025): GLM-4-9B with a norm after each sub-layer too ("sandwich" norms).

use serde::{Deserialize, Serialize};

use super::decoder;
use super::glm::GlmConfig;
use super::prenorm::{Norms, SandwichBlock};
use super::{Architecture, FamilyConfig, Spec, Tie};
use crate::Result;
use crate::nn::LayerBuilder;

/// The settings of a GLM-4-0414 `config.json`, the same as those of GLM-4.
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
        let (d, norms) = (self.0.hidden_size, Norms::new(self.0.rms_norm_eps));
        decoder::build(p, self.0.shape()?, |layer, mut p| {
            let mut norm = |name| norms.build(&mut p.at(name), d);
            Ok(SandwichBlock {
                before_attention: norm("input_layernorm")?,
                after_attention: norm("post_self_attn_layernorm")?,
                before_mlp: norm("post_attention_layernorm")?,
                after_mlp: norm("post_mlp_layernorm")?,
                attention: self.0.attention(layer, p.at("self_attn"))?,
                mlp: self.0.mlp(p.at("mlp"))?,
            })
        })
    }

    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        self.0.checkpoint_names(name)
    }

    fn tie(&mut self) -> Option<Tie<'_>> {
        self.0.tie()
    }
}
