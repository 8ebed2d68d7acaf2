//! Documents: text to pre-train on.

use serde_json::{Map, Value};

/// One text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text, which is never only white space.
    pub text: String,
    /// The record's `id` field, or else the file name with `:line` or `#number`.
    pub id: String,
    /// The other fields of the record.
    pub metadata: Map<String, Value>,
}
