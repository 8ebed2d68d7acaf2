//! Text to token ids and back: training, encoding, decoding, chat rendering.
//!
//! The encoder and the trainer are Hugging Face's `tokenizers` crate, so a `tokenizer.json` gives
//! the same ids in both. The same holds for every other kind of file that [`Tokenizer::open`]
//! converts: SentencePiece, tiktoken, tekken, GPT-2's and BERT's. This crate adds what a
//! language-model program needs: text that never becomes a special token, exact bytes of every id,
//! a stream decoder that never splits a character, and one chat renderer for training and
//! inference.
//!
//! This crate knows nothing about documents, batches or tensors.

mod alphabet;
pub mod chat;
mod check;
mod encode;
mod error;
mod import;
mod keys;
mod pieces;
mod sections;
mod specials;
mod stream;
mod table;
mod tokenizer;
mod trainer;
mod words;

pub use encode::{EncodedPair, Framed};
pub use error::{Error, Result};
pub use import::{ChatGlm, TiktokenKind, TokenType, VocabParts};
pub use specials::SpecialIds;
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
pub use trainer::{DEFAULT_SPECIAL_TOKENS, Pattern, Trainer};
