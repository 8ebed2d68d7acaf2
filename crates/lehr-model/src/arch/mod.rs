//! One family per file: it reads the family's `config.json`, builds the layers under the names of
//! its checkpoints and shows the wiring of the block.
//!
//! To add a family: its file, a variant of [`Config`] and an arm in each `match` below.

mod gpt2;
mod llama;
mod tokens;

pub use gpt2::{Gpt2, Gpt2Config};
use lehr_tensor::{ParamBuilder, Tensor};
pub use llama::{Llama, LlamaConfig, RopeScaling};
use serde_json::Value;
pub use tokens::Tokens;

use crate::nn::Linear;
use crate::{Error, KvCache, Result};

/// The sizes the rest of the program needs of any model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest context.
    pub max_positions: usize,
}

/// A decoder: tokens to hidden states, and the head that turns those into logits.
///
/// They are separate because a loss never needs all logits at once.
pub trait CausalLm: Send + Sync {
    /// Hidden states `[B, T, D]` after the last norm. With a cache the tokens continue the cached
    /// ones, and nothing is recorded for backward.
    ///
    /// # Errors
    /// If the tokens do not fit the model or the cache, or memory runs out.
    fn hidden(&self, tokens: &Tokens, cache: Option<&mut KvCache>) -> Result<Tensor>;

    /// The output projection to the vocabulary.
    fn head(&self) -> &Linear;

    /// The model's sizes.
    fn spec(&self) -> Spec;
}

/// The configuration of any family, as its `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one per model")]
pub enum Config {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama 2 and 3, and what shares their blocks.
    Llama(LlamaConfig),
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// If the architecture is not known or a setting is missing or impossible.
    pub fn from_json(json: &Value) -> Result<Self> {
        let config = match json.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => Self::Gpt2(parse(json)?),
            Some("llama") => Self::Llama(parse(json)?),
            found => {
                let found = found.unwrap_or("missing");
                return Err(Error::config("model_type", found, "one of gpt2, llama"));
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` that `transformers` reads.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Gpt2(config) => with_type(config, "gpt2", "GPT2LMHeadModel"),
            Self::Llama(config) => with_type(config, "llama", "LlamaForCausalLM"),
        }
    }

    /// An error if some setting is impossible.
    ///
    /// # Errors
    /// The first impossible setting.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Gpt2(config) => config.validate(),
            Self::Llama(config) => config.validate(),
        }
    }

    /// The model's sizes.
    #[must_use]
    pub fn spec(&self) -> Spec {
        match self {
            Self::Gpt2(config) => config.spec(),
            Self::Llama(config) => config.spec(),
        }
    }

    /// Builds the layers.
    ///
    /// # Errors
    /// If the source of parameters fails.
    pub fn build(&self, p: &mut ParamBuilder<'_>) -> Result<Box<dyn CausalLm>> {
        Ok(match self {
            Self::Gpt2(config) => Box::new(Gpt2::build(config, p)?),
            Self::Llama(config) => Box::new(Llama::build(config, p)?),
        })
    }

    /// Names a parameter may also have in published checkpoints, and names that are not parameters.
    #[must_use]
    pub(crate) fn checkpoint_names(&self, name: &str) -> Vec<String> {
        match self {
            // The first GPT-2 files lack the prefix.
            Self::Gpt2(_) => {
                let short = name.strip_prefix("transformer.").unwrap_or(name);
                vec![name.to_owned(), short.to_owned()]
            }
            Self::Llama(_) => vec![name.to_owned()],
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &Value) -> Result<T> {
    T::deserialize(json).map_err(|e| {
        Error::config(
            "config.json",
            e,
            "the settings of this model type as transformers writes them",
        )
    })
}

fn with_type(config: &impl serde::Serialize, model_type: &str, class: &str) -> Value {
    let mut json = serde_json::to_value(config).unwrap_or_default();
    if let Some(map) = json.as_object_mut() {
        map.insert("model_type".into(), model_type.into());
        map.insert("architectures".into(), vec![class].into());
        map.insert("dtype".into(), "float32".into());
    }
    json
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

/// An error unless the new tokens fit the model's context and the cache.
fn check_room(tokens: &Tokens, cache: Option<&KvCache>, spec: &Spec) -> Result<()> {
    let start = cache.map_or(0, KvCache::len);
    let limit = cache.map_or(spec.max_positions, |c| c.capacity().min(spec.max_positions));
    let found = start + tokens.len();
    if found <= limit {
        return Ok(());
    }
    Err(Error::TooLong { what: "the number of tokens", found, limit })
}
