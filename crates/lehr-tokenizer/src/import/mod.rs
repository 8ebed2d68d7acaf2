//! Readers that turn every common kind of tokenizer file into one kind.

mod assemble;
mod bpe;
mod chatglm;
mod config;
mod declared;
mod folder;
mod normalize;
mod patterns;
mod protobuf;
mod sentencepiece;
mod tekken;
mod tiktoken;
mod token_type;
mod vocab_export;
mod vocab_parts;
mod wordpiece;

pub use chatglm::ChatGlm;
pub use tiktoken::TiktokenKind;
pub use token_type::TokenType;
pub use vocab_parts::VocabParts;
