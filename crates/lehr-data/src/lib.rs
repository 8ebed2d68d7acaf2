//! From files of text to batches of token ids.
//!
//! ```text
//! files -> source (documents, labelled texts, conversations) -> split -> tokenize (shards)
//!       -> loader -> Batch
//! ```
//!
//! Every loader is a pure function of (seed, batch index), so a run resumes at any batch without
//! replaying the ones before. A [`Batch`] is plain vectors: this crate knows nothing of tensors.

mod batch;
mod error;
pub mod loader;
pub mod shard;
pub mod source;
mod split;
mod tokenize;

pub use batch::{Batch, Layout, LayoutRule, Sequence};
pub use error::{Error, Result};
pub use loader::{
    ClassLoader, LabelSet, Loader, LoaderOptions, Order, PretrainLoader, Renderer, SftLoader,
};
pub use shard::ShardSet;
pub use source::{
    Conversation, DatasetKind, Document, Labelled, LabelledFields, Part, ReadOptions, Reading,
    data_files, guess_kind, has_validation, read_conversations, read_documents, read_labelled,
};
pub use split::{split_by_text, split_documents};
pub use tokenize::{Progress, TokenizeOptions, tokenize_cached, tokenize_to};
