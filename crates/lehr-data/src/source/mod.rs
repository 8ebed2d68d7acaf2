//! Documents, labelled texts and conversations from files.
//!
//! Every reader takes a file or a folder. A folder stands for all files below it whose ending is
//! known, in sorted order; names that begin with a dot are left out. Files may end in `.gz` or
//! `.zst` on top. Text must be UTF-8; a byte-order mark at the start is dropped.

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
pub use kind::{DatasetKind, guess_kind};
pub use labelled::{Labelled, LabelledFields, read_labelled};
