//! Documents: text to pre-train on.

use serde_json::{Map, Value};

/// One text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text; never only white space.
    pub text: String,
    /// The record's `id` field, else the file's name with `:line` or `#number`.
    pub id: String,
    /// The other fields of the record.
    pub metadata: Map<String, Value>,
}
