//! Documents, labelled texts, texts with entities and conversations from files.
//!
//! Every reader takes a file or a folder. A folder means the files below it with a known ending, in
//! sorted order, except names that begin with a dot, files about the data, and splits that the
//! [`Part`] excludes. Files may also end in `.gz` or `.zst`. Text must be UTF-8; byte-order marks
//! are dropped.
//!
//! A reader takes the fields that it uses out of each record, and a [`Reading`] reports the others,
//! so nothing in a file is dropped without a word.

mod conll;
mod conversations;
mod document;
mod documents;
mod encoding;
mod files;
mod folder;
mod json;
mod kind;
mod labelled;
mod reading;
mod records;
mod rows;
mod strict;
mod tagged;
mod text;
mod turns;
mod zstd;

pub use conversations::{Conversation, read_conversations};
pub use document::Document;
pub(crate) use documents::TextPlace;
pub use documents::{Documents, ReadOptions, documents, read_documents};
pub use folder::{Part, data_files, has_validation};
pub use kind::{DatasetKind, guess_kind, guess_kind_of};
pub use labelled::{Labelled, LabelledFields, read_labelled};
pub(crate) use reading::Pass;
pub use reading::Reading;
pub use tagged::read_tagged;
