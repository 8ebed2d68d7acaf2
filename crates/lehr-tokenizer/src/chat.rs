//! Messages to tokens: the one renderer of training, evaluation and chat.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Tokenizer};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model; the only one whose words are learnt.
    Assistant,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        })
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said: plain text, never a special token.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Token ids, `[L]`.
    pub ids: Vec<u32>,
    /// `[L]`; true where the token is to be learnt: the assistant's content and the token that
    /// ends it.
    pub loss_mask: Vec<bool>,
}

/// The way a model family writes a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ChatTemplate {
    /// `<|role|>content<|end|>` for every message, without anything between; the prompt for an
    /// answer is `<|assistant|>`.
    #[default]
    Lehr,
}

impl ChatTemplate {
    /// Renders `messages`; `add_generation_prompt` appends the tokens after which the assistant
    /// speaks.
    ///
    /// # Errors
    /// The messages are not a conversation (see [`validate`]), a generation prompt is asked for
    /// after an assistant's message, or the tokenizer lacks a special token of the template.
    pub fn render(
        self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        validate(messages)?;
        let last = messages.len() - 1;
        if add_generation_prompt && messages[last].role == Role::Assistant {
            return Err(Error::Conversation {
                index: last,
                reason: "found assistant last, expected user before an answer".to_owned(),
            });
        }
        let end = special(tokenizer, "<|end|>")?;
        let mut rendered = Rendered { ids: Vec::new(), loss_mask: Vec::new() };
        for message in messages {
            rendered.push(&[role_token(tokenizer, message.role)?], false);
            let learnt = message.role == Role::Assistant;
            rendered.push(&tokenizer.encode(&message.content)?, learnt);
            rendered.push(&[end], learnt);
        }
        if add_generation_prompt {
            rendered.push(&[role_token(tokenizer, Role::Assistant)?], false);
        }
        Ok(rendered)
    }

    /// The ids at which generation of an answer ends.
    ///
    /// # Errors
    /// The tokenizer lacks a special token of the template.
    pub fn stop_ids(self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = vec![special(tokenizer, "<|end|>")?];
        ids.extend(tokenizer.end_of_document().ok());
        Ok(ids)
    }
}

/// Renders with [`ChatTemplate::Lehr`].
///
/// # Errors
/// As [`ChatTemplate::render`].
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<Rendered> {
    ChatTemplate::Lehr.render(tokenizer, messages, add_generation_prompt)
}

/// Checks that `messages` is a conversation: at least one message, `system` only first, then
/// `user` and `assistant` in turn, beginning with `user`.
///
/// # Errors
/// The first message that does not fit, with what was expected there.
pub fn validate(messages: &[Message]) -> Result<()> {
    let mut expected = Role::User;
    for (index, message) in messages.iter().enumerate() {
        if index == 0 && message.role == Role::System {
            continue;
        }
        if message.role != expected {
            let reason = format!("found role {}, expected {expected}", message.role);
            return Err(Error::Conversation { index, reason });
        }
        expected = if expected == Role::User { Role::Assistant } else { Role::User };
    }
    if messages.iter().all(|message| message.role == Role::System) {
        let reason = "the conversation ends here, expected a user message".to_owned();
        return Err(Error::Conversation { index: messages.len(), reason });
    }
    Ok(())
}

impl Rendered {
    fn push(&mut self, ids: &[u32], learnt: bool) {
        self.ids.extend_from_slice(ids);
        self.loss_mask.resize(self.ids.len(), learnt);
    }
}

fn role_token(tokenizer: &Tokenizer, role: Role) -> Result<u32> {
    match role {
        Role::System => special(tokenizer, "<|system|>"),
        Role::User => special(tokenizer, "<|user|>"),
        Role::Assistant => special(tokenizer, "<|assistant|>"),
    }
}

fn special(tokenizer: &Tokenizer, name: &'static str) -> Result<u32> {
    tokenizer.special(name).ok_or_else(|| Error::MissingSpecial {
        action: "rendering a conversation",
        wanted: vec![name.to_owned()],
    })
}
