//! Language models: layers, one file of wiring per architecture, and checkpoint files.
//!
//! Layers ([`nn`]) are shared; the wiring of a block is written out in the file of its family
//! ([`arch`]), which also reads the family's `config.json`. Parameter names are those of the
//! published checkpoints, so that loading is looking up a name.
//!
//! Shapes follow the legend of `lehr_tensor`.

pub mod adapt;
pub mod arch;
mod cache;
mod classifier;
mod compute;
mod decode;
mod error;
pub mod io;
mod model;
pub mod nn;
mod outline;
mod paged;
mod prefix;
mod spec;
mod weights;

pub use arch::{
    Activations, Architecture, BertConfig, ChatGlm2Config, ChatGlmConfig, Config, FrequencyDtype,
    Gemma3Config, Glm4Config, Glm130bConfig, GlmConfig, Gpt2Config, LlamaConfig, MistralConfig,
    Qwen2Config, Qwen3Config, RopeConfig, RopeScaling, RopeSettings, TextDivision, Tokens,
};
pub use cache::KvCache;
pub use classifier::Classifier;
pub use compute::{Compute, DTypeChoice, DeviceChoice, FP8_SIDE_MIN};
pub use decode::DecodeGraph;
pub use error::{Error, Result};
pub use io::StoredTensor;
pub use lehr_tensor::Role;
pub use model::Model;
pub use outline::{Outline, Parameter};
pub use paged::{PagedCache, PagedGraph};
pub use spec::Spec;
pub use weights::Weights;
