//! Documents, labelled texts and conversations from files.
//!
//! Every reader takes a file or a folder. A folder means all files below it with a known ending, in
//! sorted order, except names that begin with a dot. Files may also end in `.gz` or `.zst`. Text
//! must be UTF-8; a byte-order mark at the start is dropped.

mod conversations;
mod document;
mod documents;
mod files;
mod kind;
mod labelled;
mod records;
mod text;
mod zstd;

pub use conversations::{Conversation, read_conversations};
pub use document::Document;
pub use documents::{Documents, ReadOptions, documents, read_documents};
pub use files::data_files;
pub use kind::{DatasetKind, guess_kind};
pub use labelled::{Labelled, LabelledFields, read_labelled};
