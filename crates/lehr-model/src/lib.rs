//! Language models: layers, one file of wiring per architecture, and checkpoint files.
//!
//! Layers ([`nn`]) are shared. Each family has one file ([`arch`]), which wires its blocks and
//! reads its `config.json`. Parameters have the names of the published checkpoints, so loading a
//! weight looks up its name.
//!
//! Shapes follow the legend of `lehr_tensor`.

pub mod adapt;
pub mod arch;
mod cache;
mod classifier;
mod compute;
mod config_file;
mod error;
pub mod io;
mod labels;
mod model;
pub mod nn;
mod outline;
mod paged;
pub mod peft;
mod spec;
mod tagger;
mod weights;

pub use arch::{
    ActivationCheckpointing, Architecture, BertConfig, ChatGlm2Config, ChatGlmConfig, Config,
    FrequencyDtype, Gemma3Config, Glm4Config, Glm130bConfig, GlmConfig, Gpt2Config, Layout,
    LehrConfig, LehrParts, LlamaConfig, MistralConfig, MlpKind, NanoChatConfig, PackedText, Pass,
    Qwen2Config, Qwen3Config, RopeConfig, RopeScaling, RopeSettings, TokenPosition, TokenRows,
    Tokens,
};
pub use cache::KvCache;
pub use classifier::Classifier;
pub use compute::{Compute, DTypeChoice, DeviceChoice, FP8_SIDE_MIN};
pub use config_file::ConfigFile;
pub use error::{Error, Result};
pub use io::StoredTensor;
pub use lehr_tensor::Role;
pub use model::{Model, ModelCopy};
pub use outline::{Outline, Parameter};
pub use paged::{DecodeGraph, PagedCache, PagedSize};
pub use spec::Spec;
pub use tagger::Tagger;
pub use weights::Weights;
