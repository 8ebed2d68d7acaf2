//! Conversations to fine-tune on, in the common record formats.

use std::path::Path;

use lehr_tokenizer::chat::{Message, Role, validate};
use serde_json::{Map, Value};

use super::reading::{Pass, Reading};
use super::records::{Place, Record, records};
use super::turns::{as_json, functions, take_history, take_turns};
use crate::{Error, Result};

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The record's `id` field, or else the file name and line.
    pub id: String,
    /// The messages, a valid conversation.
    pub messages: Vec<Message>,
    /// Further variables of the chat template: `tools`, `documents` and others.
    pub variables: Map<String, Value>,
    /// Place of the record, if it was read from a file.
    pub(crate) place: Option<Place>,
}

impl Conversation {
    /// A conversation that is not from a file.
    #[must_use]
    pub fn new(id: impl Into<String>, messages: Vec<Message>) -> Self {
        Self { id: id.into(), messages, variables: Map::new(), place: None }
    }
}

/// Fields with a list of messages.
const LISTS: [&str; 3] = ["messages", "conversations", "conversation"];
/// Fields of a question, and of the answer to it.
const QUESTIONS: [&str; 4] = ["prompt", "instruction", "question", "query"];
const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];
/// Fields of a text that the instruction is about.
const INPUTS: [&str; 2] = ["input", "context"];

/// Reads all conversations of a file or folder of records. A record has one of these forms:
///
/// - `{"messages": [{"role", "content"}, ...]}`,
/// - `{"conversations": [{"from", "value"}, ...]}` with `human` and `gpt`,
/// - `{"prompt", "completion"}`: texts, or lists of messages,
/// - `{"instruction", "output"}`, with an optional `input` that follows the instruction.
///
/// A question may also be called `question` or `query`, an answer `response` or `answer`. All forms
/// may have `system`, `history` (earlier turns), `tools`, `documents` and `chat_template_kwargs`.
///
/// # Errors
/// A file cannot be read or is not well-formed, records have none of these forms or their messages
/// are not a conversation (unless `reading` skips them), or there is no record at all.
pub fn read_conversations(path: impl AsRef<Path>, reading: &Reading) -> Result<Vec<Conversation>> {
    let path = path.as_ref();
    let (mut pass, files) = Pass::begin(reading, path)?;
    let mut conversations = Vec::new();
    for file in files {
        for record in records(&file)? {
            conversations.extend(pass.take(record, conversation)?);
        }
    }
    pass.end()?;
    if conversations.is_empty() {
        return Err(Error::Empty { path: path.to_owned(), what: "conversation" });
    }
    Ok(conversations)
}

/// Whether a record with these fields is a conversation.
pub(crate) fn is_conversation(has: impl Fn(&str) -> bool) -> bool {
    LISTS.iter().any(|list| has(list))
        || (QUESTIONS.iter().any(|question| has(question))
            && ANSWERS.iter().any(|answer| has(answer)))
}

fn conversation(record: &mut Record) -> Result<Conversation> {
    let mut messages = Vec::new();
    let system = record.take_optional("system")?;
    messages.extend(system.map(|system| Message::new(Role::System, system)));
    match LISTS.iter().find(|list| record.has(list)) {
        Some(list) => {
            let turns = take_turns(record, list)?;
            if !messages.is_empty() && turns.first().is_some_and(|m| m.role == Role::System) {
                let reason =
                    format!("\"system\" is given, and {list} begins with a system message");
                return Err(record.place.malformed(reason));
            }
            messages.extend(turns);
        }
        None => {
            messages.extend(take_history(record)?);
            messages.extend(question_and_answer(record)?);
        }
    }
    let is_blank = |message: &Message| {
        message.role == Role::Assistant
            && message.is_supervised
            && message.fields.is_empty()
            && message.content.trim().is_empty()
    };
    record.has_blank_answer = messages.iter().any(is_blank);
    validate(&messages).map_err(|source| record.place.conversation(source))?;
    let variables = take_variables(record)?;
    let id = record.take_id();
    Ok(Conversation { id, messages, variables, place: Some(record.place.clone()) })
}

fn question_and_answer(record: &mut Record) -> Result<Vec<Message>> {
    let Some(question) = QUESTIONS.into_iter().find(|name| record.has(name)) else {
        return Err(record.missing("messages"));
    };
    let answer = ANSWERS.into_iter().find(|name| record.has(name)).unwrap_or(match question {
        "prompt" => "completion",
        "instruction" => "output",
        _ => "answer",
    });
    let mut messages = match record.fields.get(question) {
        Some(Value::Array(_)) => take_turns(record, question)?,
        _ => vec![Message::new(Role::User, instruction(record, question)?)],
    };
    match record.fields.get(answer) {
        Some(Value::Array(_)) => messages.extend(take_turns(record, answer)?),
        _ => {
            let text = record.take_text(answer)?;
            if text.is_empty() {
                return Err(record.place.malformed(format!("{answer:?} is an empty answer")));
            }
            messages.push(Message::new(Role::Assistant, text));
        }
    }
    Ok(messages)
}

/// Takes a question, followed by the text that it is about.
fn instruction(record: &mut Record, question: &str) -> Result<String> {
    let mut text = record.take_text(question)?;
    if question == "prompt" {
        return Ok(text);
    }
    for name in INPUTS {
        if let Some(input) = record.take_optional(name)? {
            if !text.is_empty() {
                text.push_str("\n\n");
            }
            text.push_str(&input);
        }
    }
    Ok(text)
}

/// Takes the fields that are variables of chat templates.
fn take_variables(record: &mut Record) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    match record.take("chat_template_kwargs").map(as_json) {
        None => {}
        Some(Value::Object(fields)) => variables = fields,
        Some(other) => {
            return Err(record.place.wrong_type("chat_template_kwargs", &other, "an object"));
        }
    }
    for (field, variable) in
        [("tools", "tools"), ("functions", "tools"), ("documents", "documents")]
    {
        match record.take(field).map(as_json) {
            None => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(items @ Value::Array(_)) => {
                let items = if variable == "tools" { functions(items) } else { items };
                if variables.insert(variable.to_owned(), items).is_some() {
                    return Err(record.place.malformed(format!("{variable:?} is given twice")));
                }
            }
            Some(other) => return Err(record.place.wrong_type(field, &other, "a list")),
        }
    }
    Ok(variables)
}
