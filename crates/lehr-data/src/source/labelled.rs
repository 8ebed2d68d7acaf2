//! Labelled texts: examples of a classification task.

use std::path::Path;

use serde_json::Value;

use super::files::list;
use super::records::{Record, records};
use crate::{Error, Result};

/// A text and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// The name of the class. JSON numbers and booleans become their text.
    pub label: String,
}

/// The fields of records that hold text and label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledFields {
    /// Field of the text.
    pub text: String,
    /// Field of the label.
    pub label: String,
}

impl Default for LabelledFields {
    /// `text` and `label`.
    fn default() -> Self {
        Self { text: "text".to_owned(), label: "label".to_owned() }
    }
}

/// Reads all labelled texts of a file or folder.
///
/// # Errors
/// A file cannot be read or is not well-formed, a field is missing or of another type, or there is
/// no example at all.
pub fn read_labelled(path: impl AsRef<Path>, fields: &LabelledFields) -> Result<Vec<Labelled>> {
    let path = path.as_ref();
    let mut examples = Vec::new();
    for file in list(path)? {
        for record in records(&file)? {
            examples.push(labelled(record?, fields)?);
        }
    }
    if examples.is_empty() {
        return Err(Error::Empty { path: path.to_owned(), what: "labelled text" });
    }
    Ok(examples)
}

fn labelled(mut record: Record, fields: &LabelledFields) -> Result<Labelled> {
    let label = match record.fields.get(&fields.label) {
        Some(Value::String(label)) => label.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        Some(other) => {
            return Err(record.place.wrong_type(&fields.label, other, "a string or a number"));
        }
        None => return Err(record.missing(&fields.label)),
    };
    Ok(Labelled { text: record.take_text(&fields.text)?, label })
}
