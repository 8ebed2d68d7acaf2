//! Records (JSON objects, CSV rows) from files, one at a time.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::{Format, Lines, SourceFile};
use crate::{Error, Result};

/// Place of a record, for messages and ids.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    file: Arc<SourceFile>,
    number: u64,
}

/// One record of a file.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) fields: Map<String, Value>,
    pub(crate) place: Place,
}

pub(crate) type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// Iterates over the records of a file that is not plain text.
pub(crate) fn records(file: &SourceFile) -> Result<Records> {
    let shared = Arc::new(file.clone());
    match file.format {
        Format::Text => Err(file.not_records()),
        Format::JsonLines => json_lines(shared),
        Format::Json => json_array(shared),
        Format::Csv { delimiter } => rows(shared, delimiter),
    }
}

fn json_lines(file: Arc<SourceFile>) -> Result<Records> {
    let mut lines = Lines::new((*file).clone())?;
    let next = move || {
        loop {
            match lines.next_line() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return None,
                Ok(Some((_, line))) if line.trim().is_empty() => {}
                Ok(Some((number, line))) => {
                    let place = Place { file: file.clone(), number };
                    return Some(parse_line(&line, place));
                }
            }
        }
    };
    Ok(Box::new(std::iter::from_fn(next)))
}

fn parse_line(line: &str, place: Place) -> Result<Record> {
    match serde_json::from_str(line.trim()) {
        Ok(value) => Record::new(value, place),
        Err(error) => Err(place.malformed(json_reason(&error))),
    }
}

fn json_array(file: Arc<SourceFile>) -> Result<Records> {
    let malformed =
        |place: String, reason: String| Error::Malformed { path: file.path.clone(), place, reason };
    let items = match serde_json::from_str(&file.read_to_string()?) {
        Ok(Value::Array(items)) => items,
        Ok(other) => {
            let reason =
                format!("a .json file holds a list of objects, found {}", type_name(&other));
            return Err(malformed("line 1".to_owned(), reason));
        }
        Err(error) => {
            return Err(malformed(format!("line {}", error.line()), json_reason(&error)));
        }
    };
    let record = move |(number, value)| Record::new(value, Place { file: file.clone(), number });
    Ok(Box::new((1..).zip(items).map(record)))
}

fn rows(file: Arc<SourceFile>, delimiter: u8) -> Result<Records> {
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).quoting(true).from_reader(file.open()?);
    let names = reader.headers().map_err(|error| csv_error(&file, error))?.clone();
    let record = move |row: csv::Result<csv::StringRecord>| {
        let row = row.map_err(|error| csv_error(&file, error))?;
        let number = row.position().map_or(0, csv::Position::line);
        let values = row.iter().map(|value| Value::String(value.to_owned()));
        let fields = names.iter().map(str::to_owned).zip(values).collect();
        Ok(Record { fields, place: Place { file: file.clone(), number } })
    };
    Ok(Box::new(reader.into_records().map(record)))
}

fn csv_error(file: &Arc<SourceFile>, error: csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    let offset = error.position().map_or(0, csv::Position::byte);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => file.read_error(source),
        // The position is that of the row; the parser does not report the offset of a field.
        csv::ErrorKind::Utf8 { .. } => Error::NotUtf8 { path: file.path.clone(), line, offset },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let reason = format!("the row has {len} fields, expected {expected_len}");
            Place { file: file.clone(), number: line }.malformed(reason)
        }
        other => Place { file: file.clone(), number: line }.malformed(format!("{other:?}")),
    }
}

impl Record {
    fn new(value: Value, place: Place) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Self { fields, place }),
            other => {
                let reason = format!("found {}, expected an object", type_name(&other));
                Err(place.malformed(reason))
            }
        }
    }

    /// Takes a string field out of the record.
    pub(crate) fn take_text(&mut self, field: &str) -> Result<String> {
        match self.fields.shift_remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.place.wrong_type(field, &other, "a string")),
            None => Err(self.missing(field)),
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
    pub(crate) fn path(&self) -> PathBuf {
        self.file.path.clone()
    }

    pub(crate) fn malformed(&self, reason: String) -> Error {
        Error::Malformed { path: self.path(), place: self.to_string(), reason }
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
        format!("{}:{}", self.file.name, self.number)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = if self.file.format == Format::Json { "item" } else { "line" };
        write!(f, "{unit} {}", self.number)
    }
}

fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("not JSON: {what} at column {}", error.column())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
