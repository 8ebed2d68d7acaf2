//! Token shards: tokenised documents on disk.
//!
//! A shard is one file: a header of 128 bytes, the token ids of whole documents end to end (u16 if
//! the vocabulary fits, else u32), zeros up to a multiple of 8, and the start of every document as
//! u64, with the number of tokens last. All numbers are little-endian. A document begins with the
//! tokens that its tokenizer puts before a prompt, if there are any, and ends with the
//! end-of-document token.

mod format;
mod reader;
mod set;
mod writer;

pub use reader::Shard;
pub use set::ShardSet;
pub(crate) use set::Stretch;
pub use writer::ShardWriter;

/// The ending of a shard's file name.
pub const EXTENSION: &str = "tokens";
