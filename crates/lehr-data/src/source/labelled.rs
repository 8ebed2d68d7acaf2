//! Labelled texts: examples of a classification task.

use std::path::Path;

use serde_json::Value;

use super::reading::{Pass, Reading};
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
/// A file cannot be read or is not well-formed, in a record a field is missing, empty or of another
/// type (unless `reading` skips it), or there is no example at all.
pub fn read_labelled(
    path: impl AsRef<Path>,
    fields: &LabelledFields,
    reading: &Reading,
) -> Result<Vec<Labelled>> {
    let path = path.as_ref();
    let (mut pass, files) = Pass::begin(reading, path)?;
    let mut examples = Vec::new();
    for file in files {
        for record in records(&file)? {
            examples.extend(pass.take(record, |record| labelled(record, fields))?);
        }
    }
    pass.end()?;
    if examples.is_empty() {
        return Err(Error::Empty { path: path.to_owned(), what: "labelled text" });
    }
    Ok(examples)
}

fn labelled(record: &mut Record, fields: &LabelledFields) -> Result<Labelled> {
    if !record.has(&fields.label) {
        return Err(record.missing(&fields.label));
    }
    let label = match record.fields.shift_remove(&fields.label).unwrap_or_default() {
        Value::String(label) => label,
        value @ (Value::Number(_) | Value::Bool(_)) => value.to_string(),
        other => {
            return Err(record.place.wrong_type(&fields.label, &other, "a string or a number"));
        }
    };
    let text = record.take_text(&fields.text)?;
    for (name, value) in [(&fields.label, &label), (&fields.text, &text)] {
        if value.trim().is_empty() {
            return Err(record.place.malformed(format!("field {name:?} is empty")));
        }
    }
    // The place of a record is its id in messages; an id of its own is for people.
    record.take_id();
    Ok(Labelled { text, label })
}
