//! Conversations to fine-tune on, in the common record formats.

use std::path::Path;

use lehr_tokenizer::chat::{Message, Role, validate};
use serde_json::Value;

use super::files::list;
use super::records::{Record, records};
use crate::{Error, Result};

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The record's `id` field, or else the file name and line.
    pub id: String,
    /// The messages, a valid conversation.
    pub messages: Vec<Message>,
}

/// Reads all conversations of a file or folder of records. A record has one of these forms:
///
/// - `{"messages": [{"role", "content"}, ...]}`,
/// - `{"conversations": [{"from", "value"}, ...]}` with `human` and `gpt`,
/// - `{"prompt", "completion"}` or `{"prompt", "response"}`,
/// - `{"instruction", "output"}`, with an optional `input` that follows the instruction,
///
/// The last two may have a `system` field.
///
/// # Errors
/// A file cannot be read or is not well-formed, a record has none of these forms, its messages are
/// not a conversation, or there is no record at all.
pub fn read_conversations(path: impl AsRef<Path>) -> Result<Vec<Conversation>> {
    let path = path.as_ref();
    let mut conversations = Vec::new();
    for file in list(path)? {
        for record in records(&file)? {
            conversations.push(conversation(record?)?);
        }
    }
    if conversations.is_empty() {
        return Err(Error::Empty { path: path.to_owned(), what: "conversation" });
    }
    Ok(conversations)
}

/// Whether a record with these fields is a conversation.
pub(crate) fn is_conversation(has: impl Fn(&str) -> bool) -> bool {
    has("messages")
        || has("conversations")
        || (has("prompt") && (has("completion") || has("response")))
        || (has("instruction") && has("output"))
}

fn conversation(mut record: Record) -> Result<Conversation> {
    let messages = if record.fields.contains_key("messages") {
        turns(&record, "messages", "role", "content")?
    } else if record.fields.contains_key("conversations") {
        turns(&record, "conversations", "from", "value")?
    } else {
        question_and_answer(&mut record)?
    };
    validate(&messages).map_err(|source| Error::Conversation {
        path: record.place.path(),
        place: record.place.to_string(),
        source,
    })?;
    Ok(Conversation { id: record.take_id(), messages })
}

fn question_and_answer(record: &mut Record) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let system = optional_text(record, "system")?;
    messages.extend(system.map(|system| Message::new(Role::System, system)));
    let has = |name: &str| record.fields.contains_key(name);
    let (question, answer) = if has("prompt") {
        let answer = if has("response") { "response" } else { "completion" };
        (record.take_text("prompt")?, record.take_text(answer)?)
    } else if has("instruction") {
        let instruction = record.take_text("instruction")?;
        let question = match optional_text(record, "input")? {
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction,
        };
        (question, record.take_text("output")?)
    } else {
        return Err(record.missing("messages"));
    };
    messages.push(Message::new(Role::User, question));
    messages.push(Message::new(Role::Assistant, answer));
    Ok(messages)
}

/// A text field that may be missing, null or empty.
fn optional_text(record: &mut Record, field: &str) -> Result<Option<String>> {
    match record.fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(record.take_text(field)?).filter(|text| !text.is_empty())),
    }
}

fn turns(record: &Record, list: &str, role: &str, content: &str) -> Result<Vec<Message>> {
    let place = &record.place;
    let items = match record.fields.get(list) {
        Some(Value::Array(items)) => items,
        other => return Err(place.wrong_type(list, other.unwrap_or(&Value::Null), "a list")),
    };
    let turn = |(index, item): (usize, &Value)| {
        let text = |field: &str| match item.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => {
                let name = format!("{list}[{index}].{field}");
                Err(place.wrong_type(&name, other.unwrap_or(&Value::Null), "a string"))
            }
        };
        let role = text(role)?;
        let role = role_of(&role).ok_or_else(|| {
            place.malformed(format!(
                "message {index} has role {role:?}, expected \"system\", \"user\" or \"assistant\""
            ))
        })?;
        Ok(Message::new(role, text(content)?))
    };
    items.iter().enumerate().map(turn).collect()
}

fn role_of(name: &str) -> Option<Role> {
    match name {
        "system" => Some(Role::System),
        "user" | "human" => Some(Role::User),
        "assistant" | "gpt" => Some(Role::Assistant),
        _ => None,
    }
}
