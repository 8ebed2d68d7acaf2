//! One family per file: it reads the family's `config.json`, builds the layers under the names of
//! its checkpoints and shows the wiring of the block.
//!
//! To add a family: its file, with a settings struct that implements `FamilyConfig`, and a line in
//! `families!` below.

mod attention;
mod bert;
mod chatglm;
mod chatglm2;
mod checkpointing;
mod decoder;
mod deepnorm;
mod gemma3;
mod glm;
mod glm130b;
mod glm4;
mod gpt2;
mod layout;
mod llama;
mod mistral;
mod pass;
mod prefix;
mod prenorm;
mod qwen2;
mod qwen3;
mod rope;
mod stack;
mod tokens;
mod windows;

pub(crate) use attention::KvPrefixParams;
pub use bert::{Bert, BertConfig};
pub use chatglm::{ChatGlmConfig, FrequencyDtype};
pub use chatglm2::{ChatGlm2, ChatGlm2Config};
pub use checkpointing::ActivationCheckpointing;
pub use gemma3::Gemma3Config;
pub use glm::GlmConfig;
pub use glm4::Glm4Config;
pub use glm130b::Glm130bConfig;
pub use gpt2::{Gpt2, Gpt2Config};
pub use layout::{Layout, TokenPosition};
use lehr_tensor::Tensor;
use lehr_tensor::ops::activation::Activation;
pub use llama::LlamaConfig;
pub use mistral::MistralConfig;
pub use pass::Pass;
use pass::Residual;
pub use qwen2::Qwen2Config;
pub use qwen3::Qwen3Config;
pub use rope::{RopeConfig, RopeScaling, RopeSettings};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
pub use tokens::{PackedText, TokenRows, Tokens};

use crate::io::ShardRule;
use crate::nn::{LayerBuilder, Linear};
pub use crate::spec::Spec;
use crate::{Error, Result};

/// What a family's model computes: tokens to hidden states, and the head that turns those into
/// logits.
///
/// They are separate because a loss never needs all logits at once.
pub trait Architecture: Send + Sync {
    /// Computes hidden states `[B, T, D]` after the last norm, recorded if recording is on. With a
    /// cache the tokens continue the cached ones, and recording has to be off.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor>;

    /// The output projection to the vocabulary; encoders are published without one too.
    fn head(&self) -> Option<&Linear>;

    /// The layer that classifiers apply to an encoder's first token, if its weights hold one.
    fn pooler(&self) -> Option<&Linear> {
        None
    }

    /// What the output projection is applied to, from the hidden states: those themselves, except
    /// where a family has layers between.
    ///
    /// # Errors
    /// If memory runs out.
    fn head_input(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.clone())
    }

    /// Whether a token sees only what comes before it, so that the model can continue a text. An
    /// encoder's tokens see the whole text, and its head predicts the tokens that are masked.
    fn is_causal(&self) -> bool {
        true
    }

    /// The cap `c` of logits that are `c tanh(logit / c)`.
    fn logit_softcap(&self) -> Option<f32> {
        None
    }

    /// Whether texts begin with a prefix whose tokens see one another in both directions.
    fn has_prefix(&self) -> bool {
        false
    }

    /// Lays out one text: its positions, and the prefix whose tokens see one another.
    ///
    /// # Errors
    /// If the text lacks the tokens that say so.
    fn layout(&self, ids: &[i32]) -> Result<Layout> {
        Ok(Layout::causal(ids.len()))
    }

    /// The model's sizes.
    fn spec(&self) -> Spec;
}

/// The settings of one family: what its `config.json` says.
pub(crate) trait FamilyConfig: Serialize + DeserializeOwned {
    /// `model_type` in `config.json`.
    const MODEL_TYPE: &'static str;
    /// The class of the language model, `architectures` in `config.json`.
    const CLASS: &'static str;

    /// Whether this family reads the file.
    fn recognises(json: &Value) -> bool {
        json.get("model_type").and_then(Value::as_str) == Some(Self::MODEL_TYPE)
    }

    /// Reads the file.
    fn read(json: &Value) -> Result<Self> {
        parse(json)
    }

    /// An error if some setting is impossible.
    fn validate(&self) -> Result<()>;

    /// The model's sizes.
    fn spec(&self) -> Spec;

    /// Builds the layers.
    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>>;

    /// Names a parameter may have in published checkpoints.
    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    /// Looks at the names of a checkpoint, for families whose files differ in what they hold
    /// beyond what `config.json` says.
    fn fit_to(&mut self, _has: &dyn Fn(&str) -> bool) {}

    /// The model's class, `architectures` in `config.json`.
    fn class(&self) -> &'static str {
        Self::CLASS
    }

    /// How a parameter is put together from the parts of a tensor-parallel checkpoint.
    fn shard_rule(&self, _name: &str) -> ShardRule {
        ShardRule::Replicated
    }
}

/// Writes [`Config`] from the list of families.
macro_rules! families {
    ($($(#[$doc:meta])* $family:ident($config:ty),)*) => {
        /// The configuration of any family, as its `config.json`.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Config {
            $($(#[$doc])* $family($config),)*
        }

        impl Config {
            /// The `model_type`s there are.
            const MODEL_TYPES: &'static [&'static str] = &[$(<$config>::MODEL_TYPE),*];

            /// The names of the families.
            pub const FAMILIES: &'static [&'static str] = &[$(stringify!($family)),*];

            /// The family's name.
            #[must_use]
            pub fn family(&self) -> &'static str {
                match self { $(Self::$family(_) => stringify!($family),)* }
            }

            /// Reads a parsed `config.json`.
            ///
            /// # Errors
            /// If the architecture is not known or a setting is missing or impossible.
            pub fn from_json(json: &Value) -> Result<Self> {
                check_floats(json)?;
                $(if <$config>::recognises(json) {
                    let config = Self::$family(<$config>::read(json)?);
                    config.validate()?;
                    return Ok(config);
                })*
                Err(unknown_model_type(json))
            }

            /// The `config.json` that `transformers` reads.
            #[must_use]
            pub fn to_json(&self) -> Value {
                match self { $(Self::$family(config) => to_json(config),)* }
            }

            /// An error if some setting is impossible.
            ///
            /// # Errors
            /// The first impossible setting.
            pub fn validate(&self) -> Result<()> {
                match self {
                    $(Self::$family(config) => {
                        check_sizes(config)?;
                        config.validate()
                    })*
                }
            }

            /// The model's sizes.
            #[must_use]
            pub fn spec(&self) -> Spec {
                match self { $(Self::$family(config) => config.spec(),)* }
            }

            /// Builds the layers.
            ///
            /// # Errors
            /// If the source of parameters fails.
            pub fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>> {
                match self { $(Self::$family(config) => config.build(p),)* }
            }

            /// The class of the language model in `transformers`.
            #[must_use]
            pub fn class(&self) -> &'static str {
                match self { $(Self::$family(config) => config.class(),)* }
            }

            /// Names a parameter may have in published checkpoints.
            pub(crate) fn checkpoint_names(&self, name: &str) -> Vec<String> {
                match self { $(Self::$family(config) => config.checkpoint_names(name),)* }
            }

            /// Looks at the names of a checkpoint.
            pub(crate) fn fit_to(&mut self, has: &dyn Fn(&str) -> bool) {
                match self { $(Self::$family(config) => config.fit_to(has),)* }
            }

            /// How a parameter is put together from the parts of a tensor-parallel checkpoint.
            pub(crate) fn shard_rule(&self, name: &str) -> ShardRule {
                match self { $(Self::$family(config) => config.shard_rule(name),)* }
            }
        }
    };
}

families! {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama 2 and 3, and what shares their blocks.
    Llama(LlamaConfig),
    /// BERT, with or without a head.
    Bert(BertConfig),
    /// Mistral 7B and Nemo.
    Mistral(MistralConfig),
    /// Qwen 2 and 2.5.
    Qwen2(Qwen2Config),
    /// Qwen 3, dense.
    Qwen3(Qwen3Config),
    /// The text models of Gemma 3.
    Gemma3(Gemma3Config),
    /// GLM-4-9B.
    Glm(GlmConfig),
    /// GLM-4-0414.
    Glm4(Glm4Config),
    /// ChatGLM-6B.
    ChatGlm(ChatGlmConfig),
    /// ChatGLM2-6B, ChatGLM3-6B, and GLM-4-9B under the names of its first publication.
    ChatGlm2(ChatGlm2Config),
    /// GLM-130B.
    Glm130b(Glm130bConfig),
}

fn unknown_model_type(json: &Value) -> Error {
    let found = json.get("model_type").and_then(Value::as_str).unwrap_or("missing");
    let mut known = Config::MODEL_TYPES.to_vec();
    known.dedup();
    Error::config("model_type", found, format!("one of {}", known.join(", ")))
}

fn parse<T: DeserializeOwned>(json: &Value) -> Result<T> {
    T::deserialize(json).map_err(|e| {
        Error::config(
            "config.json",
            e,
            "the settings of this model type as transformers writes them",
        )
    })
}

fn to_json<C: FamilyConfig>(config: &C) -> Value {
    let mut json = serde_json::to_value(config).unwrap_or_default();
    if let Some(map) = json.as_object_mut() {
        map.insert("model_type".into(), C::MODEL_TYPE.into());
        map.insert("architectures".into(), vec![config.class()].into());
        map.insert("dtype".into(), "float32".into());
    }
    json
}

/// Names in files of the language model and in files of the model without a head, which lack the
/// prefix `model.`.
fn with_and_without_prefix(name: &str) -> Vec<String> {
    let bare = name.strip_prefix("model.").map(str::to_owned);
    [name.to_owned()].into_iter().chain(bare).collect()
}

/// The activation that `transformers` calls so, for a gated MLP.
fn activation(key: &str, name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::Relu2),
        other => {
            Err(Error::config(key, other, "silu, gelu, gelu_pytorch_tanh, gelu_new, relu or relu2"))
        }
    }
}

/// The standard deviation at which projections back into the residual stream start: each block
/// adds twice to it, and its variance at the end stays that of one.
fn residual_std(std: f32, n_layers: usize) -> f32 {
    std / (2.0 * n_layers as f32).sqrt()
}

/// An error unless the sizes are those of a decoder with rotated, shared heads.
fn check_spec(spec: &Spec, intermediate_size: usize) -> Result<()> {
    for (key, value) in [
        ("vocab_size", spec.vocab_size),
        ("hidden_size", spec.hidden_size),
        ("intermediate_size", intermediate_size),
        ("num_hidden_layers", spec.n_layers),
        ("num_attention_heads", spec.n_heads),
        ("max_position_embeddings", spec.max_positions),
    ] {
        positive(key, value)?;
    }
    divides("num_key_value_heads", spec.n_kv_heads, "num_attention_heads", spec.n_heads)?;
    let fits = spec.n_heads.checked_mul(spec.head_dim).is_some();
    if fits && spec.head_dim > 0 && spec.head_dim.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::config("head_dim", spec.head_dim, "an even number, at least 2"))
}

/// An error if some number is beyond those of 32 bits that settings are kept in.
fn check_floats(json: &Value) -> Result<()> {
    let settings = json.as_object().into_iter().flatten();
    for (key, value) in settings {
        if let Some(found) = value.as_f64().filter(|found| found.abs() > f64::from(f32::MAX)) {
            return Err(Error::config(key, found, "a number below 3.4e38"));
        }
    }
    Ok(())
}

/// The largest whole number among the settings of a model: products of two, in bytes, are numbers
/// of 64 bits.
const MAX_SIZE: u64 = 1 << 30;

/// The largest number of blocks, and of numbers in a head: each takes a moment (a block to look for
/// its weights, a number to compute its frequency) before the file is known to have it.
const MAX_STEPS: usize = 1 << 16;

/// An error if some setting is so large that computing with it might overflow or never end.
fn check_sizes(config: &impl FamilyConfig) -> Result<()> {
    let json = serde_json::to_value(config).unwrap_or_default();
    for (key, value) in json.as_object().into_iter().flatten() {
        if let Some(found) = value.as_u64().filter(|found| *found > MAX_SIZE) {
            return Err(Error::config(key, found, format!("at most {MAX_SIZE}")));
        }
    }
    let spec = config.spec();
    for (key, found) in [("the number of blocks", spec.n_layers), ("head_dim", spec.head_dim)] {
        if found > MAX_STEPS {
            return Err(Error::config(key, found, format!("at most {MAX_STEPS}")));
        }
    }
    Ok(())
}

/// An error unless `value` is at least 1.
fn positive(key: &str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::config(key, value, "at least 1"))
}

/// An error unless `part` divides `whole`.
fn divides(part_key: &str, part: usize, whole_key: &str, whole: usize) -> Result<()> {
    if part > 0 && whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(Error::config(part_key, part, format!("a divisor of {whole_key} = {whole}")))
}
