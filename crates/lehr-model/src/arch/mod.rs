//! One file per family. It reads the family's `config.json`, builds the layers under the names of
//! its checkpoints and shows how a block is wired.
//!
//! To add a family, add its file, with a settings struct that implements `FamilyConfig`, and a line
//! in `families!` below.

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
mod lehr;
mod llama;
mod mistral;
mod nanochat;
mod parts;
mod pass;
mod prefix;
mod prenorm;
mod previous;
mod qwen2;
mod qwen3;
mod rope;
mod stack;
mod tokens;
mod unread;
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
pub use lehr::{LehrConfig, LehrParts, MlpKind};
use lehr_tensor::Tensor;
use lehr_tensor::ops::activation::Activation;
pub use llama::LlamaConfig;
pub use mistral::MistralConfig;
pub use nanochat::NanoChatConfig;
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

/// A family's model: it maps tokens to hidden states, and its head maps those to logits.
///
/// The two are separate because a loss never needs all logits at once.
pub trait Architecture: Send + Sync {
    /// Computes hidden states `[B, T, D]` after the last norm. It records if recording is on. With
    /// a cache, the tokens continue the cached ones and recording must be off.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    fn forward(&self, pass: Pass<'_>) -> Result<Tensor>;

    /// Returns the output projection to the vocabulary. Some published encoders have none.
    fn head(&self) -> Option<&Linear>;

    /// Returns the layer that classifiers apply to an encoder's first token, if the weights contain
    /// one.
    fn pooler(&self) -> Option<&Linear> {
        None
    }

    /// Computes the head's input from the hidden states. It is the hidden states themselves, except
    /// in families with layers between.
    ///
    /// # Errors
    /// If memory runs out.
    fn head_input(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.clone())
    }

    /// Returns whether tokens attend only to earlier ones, so the model can continue a text. In an
    /// encoder they attend to the whole text, and the head predicts masked tokens.
    fn is_causal(&self) -> bool {
        true
    }

    /// Returns the logit cap `c`, if there is one: logits become `c tanh(logit / c)`.
    fn logit_softcap(&self) -> Option<f32> {
        None
    }

    /// Returns whether texts begin with a bidirectional prefix.
    fn has_prefix(&self) -> bool {
        false
    }

    /// Returns whether tokens read the previous token outside of attention.
    fn reads_previous_token(&self) -> bool {
        false
    }

    /// Returns whether tokens read the keys of the previous token outside of attention.
    fn reads_previous_keys(&self) -> bool {
        false
    }

    /// Lays out one text: its positions and its bidirectional prefix.
    ///
    /// # Errors
    /// If the text lacks the tokens that mark its parts.
    fn layout(&self, ids: &[i32]) -> Result<Layout> {
        Ok(Layout::causal(ids.len()))
    }

    /// Returns the model's sizes.
    fn spec(&self) -> Spec;
}

/// The settings of one family, as in its `config.json`.
pub(crate) trait FamilyConfig: Serialize + DeserializeOwned {
    /// `model_type` in `config.json`.
    const MODEL_TYPE: &'static str;
    /// The class of the language model, `architectures` in `config.json`.
    const CLASS: &'static str;

    /// Returns whether this family reads the file.
    fn recognises(json: &Value) -> bool {
        json.get("model_type").and_then(Value::as_str) == Some(Self::MODEL_TYPE)
    }

    /// Parses the file.
    fn read(json: &Value) -> Result<Self> {
        parse(json)
    }

    /// Checks that every setting is valid.
    fn validate(&self) -> Result<()>;

    /// Returns the model's sizes.
    fn spec(&self) -> Spec;

    /// Builds the layers.
    fn build(&self, p: &mut LayerBuilder<'_>) -> Result<Box<dyn Architecture>>;

    /// Returns the names that a parameter may have in published checkpoints.
    fn checkpoint_names(&self, name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    /// Adapts the settings to the tensor names of a checkpoint, for families whose files contain
    /// parts that `config.json` does not mention.
    fn fit_to(&mut self, _has: &dyn Fn(&str) -> bool) {}

    /// Returns the switch that ties the head to the embedding, with the names of both. `None` if
    /// the family has no such switch, or finds its head by itself.
    fn tie(&mut self) -> Option<Tie<'_>> {
        None
    }

    /// Returns the model's class, `architectures` in `config.json`.
    fn class(&self) -> &'static str {
        Self::CLASS
    }

    /// Returns how a parameter is split among the parts of a tensor-parallel checkpoint.
    fn shard_rule(&self, _name: &str) -> ShardRule {
        ShardRule::Replicated
    }
}

/// The switch that ties a head to the embedding.
pub(crate) struct Tie<'a> {
    /// Whether the head is tied.
    pub(crate) is_tied: &'a mut bool,
    /// The name of an untied head.
    pub(crate) head: &'static str,
    /// The name of the embedding.
    pub(crate) embedding: &'static str,
}

impl<'a> Tie<'a> {
    /// Describes a decoder with the names of Llama.
    fn of_decoder(is_tied: &'a mut bool) -> Option<Self> {
        let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
        Some(Self { is_tied, head, embedding })
    }
}

/// Defines [`Config`] from the list of families.
macro_rules! families {
    ($($(#[$doc:meta])* $family:ident($config:ty),)*) => {
        /// The configuration of any family, as its `config.json`.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Config {
            $($(#[$doc])* $family($config),)*
        }

        impl Config {
            /// The supported `model_type`s.
            const MODEL_TYPES: &'static [&'static str] = &[$(<$config>::MODEL_TYPE),*];

            /// The names of the families.
            pub const FAMILIES: &'static [&'static str] = &[$(stringify!($family)),*];

            /// Returns the family's name.
            #[must_use]
            pub fn family(&self) -> &'static str {
                match self { $(Self::$family(_) => stringify!($family),)* }
            }

            /// Parses a `config.json`.
            ///
            /// # Errors
            /// If the architecture is unknown, a setting is missing or invalid, or a key that the
            /// family does not read changes the computation.
            pub fn from_json(json: &Value) -> Result<Self> {
                unread::refuse_quantised(json)?;
                let config = Self::parse(json)?;
                unread::refuse(json, &config)?;
                Ok(config)
            }

            /// Lists the keys of a `config.json` that the family does not read, with their values.
            /// Keys known to change no result are not listed.
            #[must_use]
            pub fn unread_keys(json: &Value) -> Vec<String> {
                unread::unread(json)
            }

            /// Parses the keys that the family reads.
            fn parse(json: &Value) -> Result<Self> {
                check_floats(json)?;
                $(if <$config>::recognises(json) {
                    let config = Self::$family(<$config>::read(json)?);
                    config.validate()?;
                    return Ok(config);
                })*
                Err(unknown_model_type(json))
            }

            /// Returns the `config.json` that `transformers` reads.
            #[must_use]
            pub fn to_json(&self) -> Value {
                match self { $(Self::$family(config) => to_json(config),)* }
            }

            /// Checks that every setting is valid.
            ///
            /// # Errors
            /// The first invalid setting.
            pub fn validate(&self) -> Result<()> {
                match self {
                    $(Self::$family(config) => {
                        check_sizes(config)?;
                        config.validate()
                    })*
                }
            }

            /// Returns the model's sizes.
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

            /// Returns the class of the language model in `transformers`.
            #[must_use]
            pub fn class(&self) -> &'static str {
                match self { $(Self::$family(config) => config.class(),)* }
            }

            /// Returns the names that a parameter may have in published checkpoints.
            pub(crate) fn checkpoint_names(&self, name: &str) -> Vec<String> {
                match self { $(Self::$family(config) => config.checkpoint_names(name),)* }
            }

            /// Adapts the settings to the tensor names of a checkpoint.
            pub(crate) fn fit_to(&mut self, has: &dyn Fn(&str) -> bool) {
                match self { $(Self::$family(config) => config.fit_to(has),)* }
            }

            /// Returns the switch that ties the head to the embedding.
            pub(crate) fn tie(&mut self) -> Option<Tie<'_>> {
                match self { $(Self::$family(config) => config.tie(),)* }
            }

            /// Returns how a parameter is split among the parts of a tensor-parallel checkpoint.
            pub(crate) fn shard_rule(&self, name: &str) -> ShardRule {
                match self { $(Self::$family(config) => config.shard_rule(name),)* }
            }
        }
    };
}

families! {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama 2 and 3, and models with the same blocks.
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
    /// nanochat, as in transformers.
    NanoChat(NanoChatConfig),
    /// lehr's own family: Llama's block with parts that each can be switched on.
    Lehr(LehrConfig),
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
    shorten(&mut json);
    if let Some(map) = json.as_object_mut() {
        map.insert("model_type".into(), C::MODEL_TYPE.into());
        map.insert("architectures".into(), vec![config.class()].into());
        map.insert("dtype".into(), "float32".into());
    }
    json
}

/// Replaces each number that came from an f32 by the shortest decimal that means the same f32:
/// 1e-5 and not 9.999999747378752e-6.
fn shorten(json: &mut Value) {
    match json {
        Value::Number(number) if number.is_f64() => {
            let exact = number.as_f64().unwrap_or_default();
            let single = exact as f32;
            if f64::from(single) == exact
                && let Ok(short) = single.to_string().parse::<f64>()
            {
                *json = short.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        _ => {}
    }
}

/// Returns the names of a parameter with and without the prefix `model.`, which files of the model
/// without a head lack.
fn with_and_without_prefix(name: &str) -> Vec<String> {
    let bare = name.strip_prefix("model.").map(str::to_owned);
    [name.to_owned()].into_iter().chain(bare).collect()
}

/// Returns the activation of a gated MLP by its name in `transformers`.
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

/// Returns the standard deviation at which projections back into the residual stream start. Each
/// block adds to the stream twice, so this keeps the final variance that of one addition.
fn residual_std(std: f32, n_layers: usize) -> f32 {
    std / (2.0 * n_layers as f32).sqrt()
}

/// Checks that the sizes are those of a decoder with rotary positions and shared heads.
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

/// Checks that every number fits the 32 bits in which settings are kept.
fn check_floats(json: &Value) -> Result<()> {
    let settings = json.as_object().into_iter().flatten();
    for (key, value) in settings {
        if let Some(found) = value.as_f64().filter(|found| found.abs() > f64::from(f32::MAX)) {
            return Err(Error::config(key, found, "a number below 3.4e38"));
        }
    }
    Ok(())
}

/// The largest integer among the settings of a model. The product of two, in bytes, fits 64 bits.
const MAX_SIZE: u64 = 1 << 30;

/// The largest number of blocks, and of values in a head. Each takes time before the file is read:
/// a block to search its weights, a value to compute its frequency.
const MAX_STEPS: usize = 1 << 16;

/// Checks that no setting is so large that computing with it could overflow or never end.
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

/// Checks that `value` is at least 1.
fn positive(key: &str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::config(key, value, "at least 1"))
}

/// Checks that `part` divides `whole`.
fn divides(part_key: &str, part: usize, whole_key: &str, whole: usize) -> Result<()> {
    if part > 0 && whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(Error::config(part_key, part, format!("a divisor of {whole_key} = {whole}")))
}
