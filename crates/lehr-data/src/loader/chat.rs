//! Rendering of conversations, with the proof that nothing in them is dropped.

use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, Message, RenderOptions, Rendered, Role};

use crate::source::{Conversation, Pass};
use crate::{Error, Result};

/// A chat template with its tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct Renderer<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The template.
    pub template: &'a ChatTemplate,
}

impl Renderer<'_> {
    /// Renders a conversation with its variables. A template is a program, so only rendering
    /// without a part shows whether the template writes it.
    pub(super) fn render(&self, conversation: &Conversation, pass: &mut Pass) -> Result<Rendered> {
        let variables = conversation.variables.clone();
        let options = RenderOptions { variables, ..RenderOptions::default() };
        let messages = &conversation.messages;
        let rendered = self
            .template
            .render_with(self.tokenizer, messages, &options)
            .map_err(|source| conversation.fault(source))?;
        let fields: Vec<&str> = field_names(messages);
        let roles = [Role::System, Role::Tool].map(|role| (role, first_of(messages, role)));
        if fields.is_empty() && options.variables.is_empty() && roles.iter().all(|r| r.1.is_none())
        {
            return Ok(rendered);
        }
        let text = |messages: &[Message], options: &RenderOptions| {
            self.template.render_text(self.tokenizer, messages, options)
        };
        let whole = text(messages, &options).map_err(|source| conversation.fault(source))?;
        // A template that fails without a part uses it.
        let is_unused = |messages: &[Message], options: &RenderOptions| {
            text(messages, options).is_ok_and(|text| text == whole)
        };
        let name = self.template.name();
        for (role, index) in roles {
            let Some(index) = index else { continue };
            if is_unused(&without_content(messages, role), &options) {
                let reason =
                    format!("the template {name:?} does not write messages of role {role}");
                return Err(conversation.refuse(index, reason));
            }
        }
        for field in fields {
            if !is_unused(&without_field(messages, field), &options) {
                continue;
            }
            if field == "tool_calls" {
                let has = |message: &Message| message.fields.contains_key(field);
                let index = messages.iter().position(has).unwrap_or(0);
                let reason = format!("the template {name:?} does not write \"tool_calls\"");
                return Err(conversation.refuse(index, reason));
            }
            pass.unused(&format!("{field:?} in messages, which the template does not write,"));
        }
        for variable in options.variables.keys() {
            let mut without = options.clone();
            without.variables.shift_remove(variable);
            if is_unused(messages, &without) {
                pass.unused(&format!("{variable:?}, which the template does not write,"));
            }
        }
        Ok(rendered)
    }
}

impl Conversation {
    fn refuse(&self, index: usize, reason: String) -> Error {
        self.fault(lehr_tokenizer::Error::Conversation { index, reason })
    }

    /// Adds the place of the record to an error about the conversation.
    fn fault(&self, source: lehr_tokenizer::Error) -> Error {
        use lehr_tokenizer::Error as E;
        match (&self.place, source) {
            (Some(place), source @ (E::Conversation { .. } | E::Template { .. })) => {
                place.conversation(source)
            }
            (_, source) => source.into(),
        }
    }
}

/// Names of the further fields of messages, each once.
fn field_names(messages: &[Message]) -> Vec<&str> {
    let mut names: Vec<&str> =
        messages.iter().flat_map(|message| message.fields.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn first_of(messages: &[Message], role: Role) -> Option<usize> {
    messages.iter().position(|message| message.role == role && !message.content.trim().is_empty())
}

fn without_content(messages: &[Message], role: Role) -> Vec<Message> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter(|message| message.role == role) {
        message.content.clear();
    }
    messages
}

fn without_field(messages: &[Message], field: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        message.fields.shift_remove(field);
    }
    messages
}
