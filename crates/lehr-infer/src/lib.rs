//! Inference: sampling, generation with a KV cache, multi-turn chat, and the proof that a model
//! computes what its reference computes.

mod chat;
mod error;
mod generate;
mod load;
mod sample;
mod verify;

pub use chat::ChatSession;
pub use error::{Error, Result};
pub use generate::{Finish, Generated, Generator, Limits};
pub use load::{Loaded, check_vocabulary, resolve_model_dir};
pub use sample::{Sampler, Sampling};
pub use verify::{Check, verify};
