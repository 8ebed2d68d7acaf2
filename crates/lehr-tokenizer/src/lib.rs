//! Text to token ids and back: training, encoding, decoding, chat rendering.
//!
//! The encoder and the trainer are Hugging Face's `tokenizers` crate, so a `tokenizer.json`
//! gives the same ids here and there. On top of it this crate adds what a language-model program
//! needs: text that can never turn into a special token, exact bytes of every id, a decoder for
//! streams that never splits a character, and one chat renderer for training and inference.
//!
//! This crate knows nothing of files of documents, of batches or of tensors.

mod alphabet;
pub mod chat;
mod error;
mod stream;
mod tokenizer;
mod trainer;

pub use error::{Error, Result};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
pub use trainer::{DEFAULT_SPECIAL_TOKENS, Pattern, Trainer};
