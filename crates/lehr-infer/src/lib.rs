//! Inference: generation with a paged KV cache, sampling, multi-turn chat, text embeddings, and
//! comparison of a model with its reference.

mod chat;
mod continuation;
pub mod convert;
mod embed;
mod engine;
mod error;
mod inspect;
mod load;
mod model_files;
mod notice;
mod pooling;
mod proof;
mod sample;
mod stop;
mod verify;
mod vocabulary;

pub use chat::ChatSession;
pub use continuation::{Finish, Generated, Limits, TokenLogprob};
pub use embed::{Embedder, Embeddings};
pub use engine::{Engine, EngineSettings, Event, Request, RequestId};
pub use error::{Error, Result};
pub use inspect::{Inspection, TokenizerFacts};
pub use load::{
    Loaded, check_ids, check_vocabulary, open_adapter, resolve_model, template_of, tokenizer_of,
};
pub use model_files::ModelFiles;
pub use notice::{Notice, on_notice};
pub use pooling::Pooling;
pub use sample::{Sampler, Sampling};
pub use verify::{Check, verify};
pub use vocabulary::gguf_tokenizer;
