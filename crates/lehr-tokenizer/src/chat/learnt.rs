//! Supervised part of a rendered conversation, and the tokens that end an answer.

use serde_json::Value;

use super::guard::Marked;
use super::{Bound, ChatTemplate, Message, RenderOptions, Role};
use crate::{Error, Result};

/// Special tokens at which an assistant stops in the middle of its turn, to wait for a tool.
const WAITS: [&str; 4] = ["<|observation|>", "<|eom_id|>", "<|call|>", "<|tool_call_end|>"];

type Span = (usize, usize);

/// Returns the supervised bytes of `text`, the rendering of `messages`.
///
/// A template may mark them with `{% generation %}`. Otherwise they follow from the renderings of
/// the first messages: an answer begins where the text with a generation prompt ends, and ends with
/// the special token that ends the assistant's turn.
pub(super) fn spans(
    template: &ChatTemplate,
    bound: &Bound,
    messages: &[Message],
    options: &RenderOptions,
    text: &Marked,
) -> Result<Learnt> {
    if template.inner.jinja.marks_generation() {
        return Ok(Learnt { spans: text.learnt.clone(), closing: None });
    }
    let answers =
        || messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for (index, _) in answers() {
        let prompt = RenderOptions { add_generation_prompt: true, ..options.clone() };
        let before = template.marked(bound, &messages[..index], &prompt)?;
        if !text.text.starts_with(&before.text) {
            return Err(not_a_prefix(template, index, &before.text, &text.text));
        }
        starts.push(before.text.len());
    }
    let mut closing = None;
    for (order, (index, _)) in answers().enumerate() {
        let limit = starts.get(order + 1).copied().unwrap_or(text.text.len());
        let end = end(template, bound, (messages, index), options, text, (starts[order], limit))?;
        // If no token ends a turn, the following role does, and it also closes the conversation.
        let next = match end {
            End::Token(end) => {
                ends.push(end);
                continue;
            }
            End::Text(end) => {
                let follows =
                    bound.added.specials(text).into_iter().find(|(_, (start, _))| *start == end);
                ends.push(follows.map_or(end, |(_, (_, end))| end));
                follows
            }
        };
        if next.is_none() && index + 1 == messages.len() {
            closing = ends_of_turn(template, bound).first().copied();
        }
    }
    Ok(Learnt { spans: starts.into_iter().zip(ends).collect(), closing })
}

/// Supervised part of a rendered conversation.
pub(super) struct Learnt {
    /// Bytes of its text.
    pub(super) spans: Vec<Span>,
    /// A supervised token to append: the end of an answer that the template leaves open, as GLM-4's
    /// does.
    pub(super) closing: Option<u32>,
}

impl Learnt {
    /// Leaves out the answers of `messages` that are not supervised.
    pub(super) fn of_supervised(
        mut self,
        template: &ChatTemplate,
        messages: &[Message],
    ) -> Result<Self> {
        let answers: Vec<_> = messages.iter().filter(|m| m.role == Role::Assistant).collect();
        if answers.iter().all(|answer| answer.is_supervised) {
            return Ok(self);
        }
        if self.spans.len() != answers.len() {
            let reason = format!(
                "it marks {} parts as generated, but there are {} answers, some of which are not \
                 supervised",
                self.spans.len(),
                answers.len()
            );
            let name = template.name().to_owned();
            return Err(Error::Template { action: "leaving answers out with", name, reason });
        }
        let mut supervised = answers.iter().map(|answer| answer.is_supervised);
        self.spans.retain(|_| supervised.next().unwrap_or(true));
        let last = messages.last().is_none_or(|m| m.is_supervised || m.role != Role::Assistant);
        self.closing = self.closing.filter(|_| last);
        Ok(self)
    }
}

/// End of an answer: after the token that ends a turn, or at the end of its text.
enum End {
    Token(usize),
    Text(usize),
}

/// The end of the answer `index` that begins at `start`; the next begins at `limit`.
fn end(
    template: &ChatTemplate,
    bound: &Bound,
    (messages, index): (&[Message], usize),
    options: &RenderOptions,
    text: &Marked,
    (start, limit): Span,
) -> Result<End> {
    let whole = RenderOptions { add_generation_prompt: false, ..options.clone() };
    let upto = template.marked(bound, &messages[..=index], &whole)?;
    let specials = bound.added.specials(&upto);
    let last = specials.last().filter(|(_, (_, end))| upto.text[*end..].trim().is_empty());
    let has_prefix = text.text.starts_with(&upto.text);
    match last {
        // The token that ends a turn ends the text of a conversation up to there.
        Some(&(_, (_, end))) if has_prefix && end > start => Ok(End::Token(end)),
        // The template writes earlier answers differently from the last (for example without
        // thoughts).
        Some(&(id, _)) => {
            let within =
                |(token, (from, _)): &&(u32, Span)| *token == id && (start..limit).contains(from);
            let specials = bound.added.specials(text);
            let end = specials.iter().find(within).map(|(_, (_, end))| *end);
            end.map(End::Token).ok_or_else(|| not_a_prefix(template, index, &upto.text, &text.text))
        }
        None if has_prefix => Ok(End::Text(upto.text.len())),
        None => Err(not_a_prefix(template, index, &upto.text, &text.text)),
    }
}

fn not_a_prefix(template: &ChatTemplate, index: usize, before: &str, text: &str) -> Error {
    let same = before.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
    let shown =
        |text: &str| -> String { text.chars().skip(same.saturating_sub(10)).take(40).collect() };
    Error::Template {
        action: "finding what is to be learnt with",
        name: template.name().to_owned(),
        reason: format!(
            "the text up to message {index} is {:?} at character {same}, but in the whole \
             conversation it is {:?}; expected a template that writes the beginning of a \
             conversation the same whatever follows, or that marks answers with {{% generation %}}",
            shown(before),
            shown(text)
        ),
    }
}

/// Returns the tokens that end an assistant's turn: the special token right after an answer, and
/// those of tool calls that the template mentions.
pub(super) fn ends_of_turn(template: &ChatTemplate, bound: &Bound) -> Vec<u32> {
    const ANSWER: &str = "answer";
    let conversation =
        [(Role::User, "question"), (Role::Assistant, ANSWER), (Role::User, "question")];
    let messages = conversation.map(|(role, content)| Message::new(role, content));
    let after_answer = |messages: &[Message]| {
        let text = template.marked(bound, messages, &RenderOptions::default()).ok()?;
        let end = text.text.find(ANSWER)? + ANSWER.len();
        let specials = bound.added.specials(&text);
        let &(id, (start, _)) = specials.iter().find(|(_, (start, _))| *start >= end)?;
        text.text[end..start].trim().is_empty().then_some(id)
    };
    let mut ids: Vec<u32> =
        after_answer(&messages).or_else(|| after_answer(&messages[..2])).into_iter().collect();
    let mentioned = WAITS.iter().filter(|name| template.source().contains(**name));
    ids.extend(mentioned.filter_map(|name| bound.tokenizer.added(name)));
    let builtin = template.inner.builtin.map_or(&[][..], |builtin| builtin.stops);
    ids.extend(builtin.iter().filter_map(|name| bound.tokenizer.added(name)));
    let eos = bound.special.get("eos_token").and_then(Value::as_str);
    ids.extend(eos.and_then(|name| bound.tokenizer.added(name)));
    ids
}
