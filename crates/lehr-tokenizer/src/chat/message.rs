//! Messages and what makes a list of them a conversation.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model; only its words are supervised.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        })
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Plain text, never a special token. Empty in a message that only calls tools.
    #[serde(default, deserialize_with = "text_or_null")]
    pub content: String,
    /// Other fields, for templates that know them: `tool_calls`, `tool_call_id`, `name`,
    /// `reasoning_content`.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// Whether the words of an assistant are supervised. Templates do not see this.
    #[serde(skip, default = "supervised")]
    pub is_supervised: bool,
}

fn supervised() -> bool {
    true
}

fn text_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), fields: Map::new(), is_supervised: true }
    }

    /// Returns the message as transformers passes it to a template.
    pub(super) fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), self.role.to_string().into());
        fields.insert("content".to_owned(), self.content.clone().into());
        fields.extend(self.fields.clone());
        Value::Object(fields)
    }
}

/// Checks that `messages` is a conversation: at least one message, `system` only first, then `user`
/// and `assistant` in turn, beginning with `user`. Tool results (`tool`) may follow an `assistant`
/// message; the assistant speaks after them.
///
/// # Errors
/// The first message that does not fit, with what was expected there.
pub fn validate(messages: &[Message]) -> Result<()> {
    let mut before = None;
    for (index, message) in messages.iter().enumerate() {
        let role = message.role;
        let (fits, expected) = match before {
            None => (matches!(role, Role::User) || (index == 0 && role == Role::System), "user"),
            Some(Role::User) => (role == Role::Assistant, "assistant"),
            Some(Role::Tool) => (matches!(role, Role::Assistant | Role::Tool), "assistant"),
            Some(_) => (matches!(role, Role::User | Role::Tool), "user"),
        };
        if !fits {
            let reason = format!("found role {role}, expected {expected}");
            return Err(Error::Conversation { index, reason });
        }
        before = (role != Role::System).then_some(role);
    }
    if before.is_none() {
        let reason = "the conversation ends here, expected a user message".to_owned();
        return Err(Error::Conversation { index: messages.len(), reason });
    }
    Ok(())
}
