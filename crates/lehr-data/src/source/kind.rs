//! Detection of the kind of a dataset.

use std::path::Path;

use super::conversations::is_conversation;
use super::files::{Format, list};
use super::records::records;
use crate::{Error, Result};

/// Content of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetKind {
    /// Documents to pre-train on.
    Text,
    /// Labelled texts.
    Labelled,
    /// Conversations.
    Chat,
}

/// Guesses the kind of a dataset from the ending of its first file and, for records, from the
/// fields of the first one.
///
/// # Errors
/// There is no record, it cannot be read, or its fields fit no kind.
pub fn guess_kind(path: impl AsRef<Path>) -> Result<DatasetKind> {
    let path = path.as_ref();
    let empty = || Error::Empty { path: path.to_owned(), what: "record" };
    let file = list(path)?.into_iter().next().ok_or_else(empty)?;
    if file.format == Format::Text {
        return Ok(DatasetKind::Text);
    }
    let record = records(&file)?.next().ok_or_else(empty)??;
    let has = |name: &str| record.fields.contains_key(name);
    if is_conversation(has) {
        Ok(DatasetKind::Chat)
    } else if has("text") && has("label") {
        Ok(DatasetKind::Labelled)
    } else if has("text") {
        Ok(DatasetKind::Text)
    } else {
        Err(Error::UnknownKind { path: file.path, found: record.names() })
    }
}
