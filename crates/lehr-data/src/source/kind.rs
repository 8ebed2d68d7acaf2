//! Detection of the kind of a dataset.

use std::path::Path;

use super::conll;
use super::conversations::is_conversation;
use super::files::{Format, SourceFile};
use super::folder::{Part, files_of};
use super::records::records;
use super::tagged::is_tagged;
use crate::{Error, Result};

/// Content of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetKind {
    /// Documents to pre-train on.
    Text,
    /// Labelled texts.
    Labelled,
    /// Texts with named entities.
    Entities,
    /// Conversations.
    Chat,
}

impl DatasetKind {
    fn content(self) -> &'static str {
        match self {
            Self::Text => "texts",
            Self::Labelled => "labelled texts",
            Self::Entities => "texts with entities",
            Self::Chat => "conversations",
        }
    }
}

/// Guesses the kind of a dataset from the endings of its training files and, for records, from the
/// fields of the first record of each file.
///
/// # Errors
/// There is no record, none can be read, its fields fit no kind, or two files are of different
/// kinds.
pub fn guess_kind(path: impl AsRef<Path>) -> Result<DatasetKind> {
    guess_kind_of(path, Part::Train)
}

/// Guesses the kind of a part of a dataset, as [`guess_kind`] that of its training files.
///
/// # Errors
/// As [`guess_kind`].
pub fn guess_kind_of(path: impl AsRef<Path>, part: Part) -> Result<DatasetKind> {
    let path = path.as_ref();
    let mut first: Option<(String, DatasetKind)> = None;
    for file in files_of(path, part)?.files {
        let Some(kind) = kind(&file)? else { continue };
        match &first {
            None => first = Some((file.name, kind)),
            Some((_, first_kind)) if *first_kind == kind => {}
            Some((first, first_kind)) => {
                return Err(Error::MixedKinds {
                    path: path.to_owned(),
                    first: first.clone(),
                    first_kind: first_kind.content(),
                    other: file.name,
                    other_kind: kind.content(),
                });
            }
        }
    }
    let kind = first.map(|(_, kind)| kind);
    kind.ok_or_else(|| Error::Empty { path: path.to_owned(), what: "record" })
}

/// Guesses the kind of a file by its first good record; `None` if it has none.
fn kind(file: &SourceFile) -> Result<Option<DatasetKind>> {
    if conll::is_conll(file)? {
        return Ok(Some(DatasetKind::Entities));
    }
    if file.format == Format::Text {
        return Ok(Some(DatasetKind::Text));
    }
    let mut error = None;
    for record in records(file)? {
        let record = match record {
            Ok(record) => record,
            Err(found) if found.is_of_record() => {
                error.get_or_insert(found);
                continue;
            }
            Err(found) => return Err(error.unwrap_or(found)),
        };
        let has = |name: &str| record.has(name);
        return if is_conversation(has) {
            Ok(Some(DatasetKind::Chat))
        } else if is_tagged(&record) {
            Ok(Some(DatasetKind::Entities))
        } else if has("text") && has("label") {
            Ok(Some(DatasetKind::Labelled))
        } else if has("text") {
            Ok(Some(DatasetKind::Text))
        } else {
            Err(Error::UnknownKind { path: file.path.clone(), found: record.names() })
        };
    }
    error.map_or(Ok(None), Err)
}
