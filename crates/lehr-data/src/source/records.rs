//! Records: objects of JSON files, rows of CSV and TSV files.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::{Format, SourceFile};
use super::{json, rows};
use crate::{Error, Result};

/// Place of a record, for messages and ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    file: Arc<SourceFile>,
    line: u64,
    /// Number of the record in a list, from 1.
    item: Option<u64>,
}

/// One record of a file. A reader takes out the fields that it uses; the others are reported.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) fields: Map<String, Value>,
    pub(crate) place: Place,
    /// Unused fields elsewhere: within messages, or around a list of records.
    unused: Vec<String>,
    /// Whether an answer is white space. Unlike an empty one it can be learnt, but is worth a word.
    pub(crate) has_blank_answer: bool,
}

/// The records of a file, one in memory at a time. An error of one record is followed by further
/// records; see [`Error::is_of_record`].
pub(crate) type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// Iterates over the records of a file that is not plain text.
pub(crate) fn records(file: &SourceFile) -> Result<Records> {
    let shared = Arc::new(file.clone());
    match file.format {
        Format::Text => Err(file.not_records()),
        Format::Json => json::records(shared),
        Format::Csv | Format::Tsv => rows::records(shared),
    }
}

impl Record {
    pub(super) fn new(value: Value, place: Place) -> Result<Self> {
        match value {
            Value::Object(fields) => {
                let unused = Vec::new();
                Ok(Self { fields, place, unused, has_blank_answer: false })
            }
            other => {
                let reason = format!("found {}, expected an object", type_name(&other));
                Err(place.malformed(reason))
            }
        }
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Takes a field out of the record, if it is there and neither null nor an empty text.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        let value = self.fields.shift_remove(field)?;
        let is_empty = value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
        (!is_empty).then_some(value)
    }

    /// Takes a string field out of the record.
    pub(crate) fn take_text(&mut self, field: &str) -> Result<String> {
        if !self.has(field) {
            return Err(self.missing(field));
        }
        match self.fields.shift_remove(field) {
            Some(Value::String(text)) => Ok(text),
            other => Err(self.place.wrong_type(field, &other.unwrap_or_default(), "a string")),
        }
    }

    /// Takes a text field that may be missing, null or empty.
    pub(crate) fn take_optional(&mut self, field: &str) -> Result<Option<String>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.place.wrong_type(field, &other, "a string")),
        }
    }

    pub(crate) fn missing(&self, field: &str) -> Error {
        Error::MissingField {
            path: self.place.path(),
            place: self.place.to_string(),
            field: field.to_owned(),
            found: self.names(),
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.fields.keys().cloned().collect()
    }

    /// Adds fields that are not used, each in quotes with its place.
    pub(crate) fn note_unused(&mut self, names: impl IntoIterator<Item = String>) {
        self.unused.extend(names);
    }

    /// Returns the fields that were not taken out, in quotes.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        self.fields.keys().map(|name| format!("{name:?}")).chain(self.unused.iter().cloned())
    }

    /// Takes the `id` field if it is a string or a number. Otherwise the place is the id.
    pub(crate) fn take_id(&mut self) -> String {
        match self.fields.get("id") {
            Some(Value::String(_) | Value::Number(_)) => {}
            _ => return self.place.id(),
        }
        match self.fields.shift_remove("id") {
            Some(Value::String(id)) => id,
            other => other.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

impl Place {
    /// A line of a file, from 1.
    pub(super) fn line(file: Arc<SourceFile>, line: u64) -> Self {
        Self { file, line, item: None }
    }

    /// A record of a list, from 1, that begins on `line`.
    pub(super) fn item(file: Arc<SourceFile>, item: u64, line: u64) -> Self {
        Self { file, line, item: Some(item) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.file.path.clone()
    }

    /// Returns the error for a bad record.
    pub(crate) fn malformed(&self, reason: String) -> Error {
        Error::Malformed { path: self.path(), place: self.to_string(), reason }
    }

    /// Returns the error for a file that cannot be read from here on.
    pub(crate) fn broken(&self, reason: String) -> Error {
        Error::Broken { path: self.path(), place: self.to_string(), reason }
    }

    /// Returns the error for a conversation that does not fit.
    pub(crate) fn conversation(&self, source: lehr_tokenizer::Error) -> Error {
        Error::Conversation { path: self.path(), place: self.to_string(), source }
    }

    pub(crate) fn wrong_type(&self, field: &str, found: &Value, expected: &'static str) -> Error {
        Error::WrongType {
            path: self.path(),
            place: self.to_string(),
            field: field.to_owned(),
            found: type_name(found),
            expected,
        }
    }

    fn id(&self) -> String {
        format!("{}:{}", self.file.name, self.item.unwrap_or(self.line))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.item {
            Some(item) => write!(f, "item {item}, line {}", self.line),
            None => write!(f, "line {}", self.line),
        }
    }
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
