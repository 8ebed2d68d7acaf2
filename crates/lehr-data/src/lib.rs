//! From files of text to batches of token ids.
//!
//! ```text
//! files -> source (documents) -> corpus (split) -> tokenize (shards) -> loader -> Batch
//! files -> source (labelled texts, entities, conversations) -> split -> loader -> Batch
//! ```
//!
//! Documents are never held in memory together: every pass over a [`Corpus`] reads its files again.
//!
//! Every loader is a pure function of (seed, batch index), so a run resumes at any batch without
//! replaying the ones before. A [`Batch`] is plain vectors: this crate knows nothing of tensors.

mod batch;
mod corpus;
pub mod entities;
mod error;
pub mod loader;
pub mod shard;
pub mod source;
mod split;
mod tokenize;

pub use batch::{Batch, Layout, LayoutRule, Sequence};
pub use corpus::{Amount, Corpus, HeldOut, HeldOutSource, TextSplit};
pub use error::{Error, Result};
pub use loader::{
    Answers, ClassLoader, EntityLoader, LabelSet, Loader, LoaderOptions, Order, PretrainLoader,
    Renderer, RowSpan, SftLoader, WordCounts, conversation_lengths,
};
pub use shard::ShardSet;
pub use source::{
    Conversation, DatasetKind, Document, Labelled, LabelledFields, Part, ReadOptions, Reading,
    data_files, documents, guess_kind, guess_kind_of, has_validation, read_conversations,
    read_documents, read_labelled, read_tagged,
};
pub use split::{SplitBy, SplitOptions, split_by_text};
pub use tokenize::{Progress, TokenizeOptions, tokenize_cached, tokenize_to};
