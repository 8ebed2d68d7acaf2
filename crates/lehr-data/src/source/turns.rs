//! Messages of a conversation, in the forms that data sets have.

use lehr_tokenizer::chat::{Message, Role};
use serde_json::{Map, Value, json};

use super::records::{Place, Record, type_name};
use super::strict::Strict;
use crate::Result;

/// Names of roles in data sets.
const ROLES: [(&str, Role); 21] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("prompter", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("model", Role::Assistant),
    ("bot", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bing", Role::Assistant),
    ("bard", Role::Assistant),
    // A call of tools, with the call as its text.
    ("function_call", Role::Assistant),
    ("tool_call", Role::Assistant),
    ("tool", Role::Tool),
    ("tool_response", Role::Tool),
    ("tool_result", Role::Tool),
    ("function", Role::Tool),
    ("function_response", Role::Tool),
    ("observation", Role::Tool),
    ("ipython", Role::Tool),
];
const CALLS: [&str; 2] = ["function_call", "tool_call"];

/// Fields of a message that say whether its words are supervised.
const SUPERVISED: [&str; 5] = ["weight", "train", "loss", "trainable", "learn"];
/// Fields that say that they are not.
const MASKED: [&str; 2] = ["masked", "mask"];

/// Types of content parts that are text.
const TEXT_PARTS: [&str; 3] = ["text", "input_text", "output_text"];

/// Takes the list of messages in the field `list`, which may also be the text of a JSON list.
pub(super) fn take_turns(record: &mut Record, list: &str) -> Result<Vec<Message>> {
    let value = record.fields.shift_remove(list).unwrap_or_default();
    let items = match as_json(value) {
        Value::Array(items) => items,
        other => return Err(record.place.wrong_type(list, &other, "a list")),
    };
    let mut unused = Vec::new();
    let messages = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let name = format!("{list}[{index}]");
            match item {
                Value::Object(fields) => {
                    let mut turn = Turn { fields, name, list, place: &record.place };
                    turn.message(&mut unused)
                }
                other => Err(record.place.wrong_type(&name, &other, "an object")),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    // A record counts once for each name.
    unused.sort_unstable();
    unused.dedup();
    record.note_unused(unused);
    Ok(messages)
}

/// A text that is JSON, as columns of tables have it, becomes its value.
pub(super) fn as_json(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with(['[', '{']) => {
            serde_json::from_str(text).map_or(value, |Strict(value)| value)
        }
        _ => value,
    }
}

/// One message being read.
struct Turn<'a> {
    fields: Map<String, Value>,
    /// For errors: "messages[3]".
    name: String,
    list: &'a str,
    place: &'a Place,
}

impl Turn<'_> {
    fn message(&mut self, unused: &mut Vec<String>) -> Result<Message> {
        let (role, name) = self.role()?;
        let is_call = CALLS.contains(&name.as_str());
        let content = self.content(unused)?;
        let mut message = Message::new(role, content.clone().unwrap_or_default());
        message.is_supervised = self.is_supervised(role)?;
        if is_call {
            message.content.clear();
            let call = as_json(content.unwrap_or_default().into());
            if call.is_string() {
                return Err(self
                    .fault(&format!("has role {name:?}, but its text is not the JSON of a call")));
            }
            message.fields.insert("tool_calls".to_owned(), functions(call));
        }
        if let Some(call) = self.take("function_call") {
            message.fields.insert("tool_calls".to_owned(), functions(as_json(call)));
        }
        for field in ["tool_calls", "tool_call_id", "name", "reasoning_content"] {
            if let Some(value) = self.take(field) {
                let value = if field == "tool_calls" { as_json(value) } else { value };
                message.fields.insert(field.to_owned(), value);
            }
        }
        for other in ["reasoning", "thinking"] {
            if !message.fields.contains_key("reasoning_content")
                && let Some(value) = self.take(other)
            {
                message.fields.insert("reasoning_content".to_owned(), value);
            }
        }
        let has_more = message.fields.contains_key("tool_calls")
            || message.fields.contains_key("reasoning_content");
        if role == Role::Assistant
            && message.is_supervised
            && !has_more
            && message.content.is_empty()
        {
            return Err(self.fault("is an empty answer"));
        }
        // Null and empty fields say nothing.
        let says = |(_, value): &(String, Value)| !is_empty(value);
        let left = std::mem::take(&mut self.fields).into_iter().filter(says);
        unused.extend(left.map(|(name, _)| format!("{name:?} in {}", self.list)));
        Ok(message)
    }

    /// Takes a field that is not null or empty.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.shift_remove(field).filter(|value| !is_empty(value))
    }

    fn role(&mut self) -> Result<(Role, String)> {
        let field = if self.fields.contains_key("role") { "role" } else { "from" };
        let name = match self.fields.shift_remove(field) {
            Some(Value::String(name)) => name,
            other => {
                let field = format!("{}.{}", self.name, self.expected("role", "from"));
                let found = other.unwrap_or_default();
                return Err(self.place.wrong_type(&field, &found, "a string"));
            }
        };
        let lower = name.to_lowercase();
        let role = ROLES.iter().find(|(known, _)| *known == lower).map(|(_, role)| *role);
        let role = role.ok_or_else(|| {
            self.fault(&format!(
                "has role {name:?}, expected \"system\", \"user\", \"assistant\" or \"tool\""
            ))
        })?;
        Ok((role, lower))
    }

    /// The name of a field in the form that the record has.
    fn expected(&self, openai: &'static str, sharegpt: &'static str) -> &'static str {
        let is_sharegpt = self.list == "conversations" && !self.fields.contains_key("content");
        if is_sharegpt { sharegpt } else { openai }
    }

    /// Takes the content; `None` if it is missing and the message calls tools.
    fn content(&mut self, unused: &mut Vec<String>) -> Result<Option<String>> {
        let field = if self.fields.contains_key("content") { "content" } else { "value" };
        match self.fields.shift_remove(field) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Array(parts)) => self.parts(parts, unused).map(Some),
            None | Some(Value::Null)
                if ["tool_calls", "function_call"].iter().any(|f| self.fields.contains_key(*f)) =>
            {
                Ok(None)
            }
            other => {
                let name = format!("{}.{}", self.name, self.expected("content", "value"));
                let found = other.unwrap_or_default();
                Err(self.place.wrong_type(&name, &found, "a string or a list of parts"))
            }
        }
    }

    /// Joins the texts of content parts, as templates write them.
    fn parts(&self, parts: Vec<Value>, unused: &mut Vec<String>) -> Result<String> {
        let mut content = String::new();
        for (index, part) in parts.into_iter().enumerate() {
            let mut part = match part {
                Value::String(text) => {
                    content.push_str(&text);
                    continue;
                }
                Value::Object(part) => part,
                other => {
                    let name = format!("{}.content[{index}]", self.name);
                    return Err(self.place.wrong_type(&name, &other, "an object"));
                }
            };
            let kind = part.shift_remove("type");
            let kind = kind.as_ref().and_then(Value::as_str).unwrap_or("text");
            if !TEXT_PARTS.contains(&kind) {
                return Err(self.fault(&format!("has a part of type {kind:?}, expected text")));
            }
            match part.shift_remove("text") {
                Some(Value::String(text)) => content.push_str(&text),
                other => {
                    let name = format!("{}.content[{index}].text", self.name);
                    let found = other.unwrap_or_default();
                    return Err(self.place.wrong_type(&name, &found, "a string"));
                }
            }
            let left = part.into_iter().filter(|(_, value)| !is_empty(value));
            unused.extend(left.map(|(name, _)| format!("{name:?} in parts of {}", self.list)));
        }
        Ok(content)
    }

    fn is_supervised(&mut self, role: Role) -> Result<bool> {
        let mut supervised = None;
        for field in SUPERVISED.iter().chain(&MASKED) {
            let Some(value) = self.take(field) else { continue };
            let said = match value {
                Value::Bool(said) => said,
                ref value if value.as_f64() == Some(1.0) => true,
                ref value if value.as_f64() == Some(0.0) => false,
                other => {
                    return Err(self.fault(&format!(
                        "has {field:?} {other}, expected 0 or 1: a turn is supervised or not"
                    )));
                }
            };
            let said = said != MASKED.contains(field);
            if supervised.is_some_and(|before| before != said) {
                return Err(self.fault(&format!("has {field:?}, which contradicts another field")));
            }
            // Only what an assistant says can be supervised.
            let marks_other = said && role != Role::Assistant && !MASKED.contains(field);
            if marks_other && *field != "weight" {
                return Err(self.fault(&format!(
                    "has role {role} and {field:?}, but only assistants are supervised"
                )));
            }
            supervised = Some(said);
        }
        Ok(supervised.unwrap_or(true))
    }

    fn fault(&self, what: &str) -> crate::Error {
        self.place.malformed(format!("message {} {what}", self.name))
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A list of functions or calls, or one of them, as templates expect it:
/// `[{"type": "function", "function": {...}}]`.
pub(super) fn functions(value: Value) -> Value {
    let items = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    let wrapped = |item: Value| match item.get("function") {
        Some(_) => item,
        None => json!({ "type": "function", "function": item }),
    };
    items.into_iter().map(wrapped).collect()
}

/// Earlier turns as pairs of question and answer.
pub(super) fn take_history(record: &mut Record) -> Result<Vec<Message>> {
    let items = match record.take("history").map(as_json) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(record.place.wrong_type("history", &other, "a list")),
    };
    if items.iter().all(Value::is_object) {
        record.fields.insert("history".to_owned(), Value::Array(items));
        return take_turns(record, "history");
    }
    let mut messages = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let pair = item.as_array().map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
        match pair.as_deref() {
            Some([Some(_), Some("")]) => {
                let reason = format!("history[{index}] has an empty answer");
                return Err(record.place.malformed(reason));
            }
            Some([Some(question), Some(answer)]) => {
                messages.push(Message::new(Role::User, *question));
                messages.push(Message::new(Role::Assistant, *answer));
            }
            _ => {
                let reason = format!(
                    "history[{index}] is {}, expected a pair of question and answer",
                    type_name(&item)
                );
                return Err(record.place.malformed(reason));
            }
        }
    }
    Ok(messages)
}
