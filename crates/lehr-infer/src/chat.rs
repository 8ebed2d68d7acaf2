//! Multi-turn conversation.

use std::ops::ControlFlow;

use lehr_model::Model;
use lehr_tokenizer::Tokenizer;
use lehr_tokenizer::chat::{ChatTemplate, Message, Role};

use crate::{Engine, EngineSettings, Error, Generated, Limits, Request, Result, Sampler};

/// A conversation: its messages, and an engine whose cache holds their tokens.
pub struct ChatSession<'a> {
    engine: Engine<'a>,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    stop_ids: Vec<u32>,
    messages: Vec<Message>,
    n_forgotten: usize,
}

impl<'a> ChatSession<'a> {
    /// Begins a conversation in the format of `template`, with an optional system message.
    /// `context` is its maximum length in tokens; `None` = the model's context.
    ///
    /// # Errors
    /// If the model is an encoder, the tokenizer lacks special tokens of the template or memory
    /// runs out.
    pub fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        template: &ChatTemplate,
        system: Option<&str>,
        context: Option<usize>,
    ) -> Result<Self> {
        model.check_causal("talking")?;
        let template = template.clone();
        // A model without the template's tokens is refused before the first word is typed.
        let stop_ids = template.stop_ids(tokenizer)?;
        let engine =
            Engine::new(model, tokenizer, EngineSettings { context, ..EngineSettings::ONE })?;
        let system = system.map(|text| Message::new(Role::System, text));
        let messages = system.into_iter().collect();
        Ok(Self { engine, tokenizer, template, stop_ids, messages, n_forgotten: 0 })
    }

    /// Returns the maximum length of the conversation in tokens.
    #[must_use]
    pub fn context(&self) -> usize {
        self.engine.context()
    }

    /// Returns the messages so far.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns the number of old messages that were dropped because the context was full.
    #[must_use]
    pub fn n_forgotten(&self) -> usize {
        self.n_forgotten
    }

    /// Answers `text`. If the conversation no longer fits the context, first drops its oldest turns
    /// ([`ChatSession::n_forgotten`]).
    ///
    /// # Errors
    /// If even the last message alone does not fit. The conversation is then unchanged.
    pub fn answer(
        &mut self,
        text: &str,
        sampler: &mut Sampler,
        limits: &Limits,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let before = (self.messages.clone(), self.n_forgotten);
        self.messages.push(Message::new(Role::User, text));
        let answer = self.try_answer(sampler, limits, on_text);
        match &answer {
            Ok(answer) => {
                self.messages.push(Message::new(Role::Assistant, answer.text.clone()));
            }
            Err(_) => (self.messages, self.n_forgotten) = before,
        }
        answer
    }

    /// Returns the number of tokens reserved for an answer in a context of `capacity` tokens.
    #[must_use]
    pub fn answer_room(capacity: usize) -> usize {
        const ANSWER_MIN: usize = 32;
        ANSWER_MIN.min(capacity / 4)
    }

    fn try_answer(
        &mut self,
        sampler: &mut Sampler,
        limits: &Limits,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let capacity = self.engine.context();
        // Old turns make room for a whole answer, of a quarter of the context if it is long.
        let wanted = limits.max_tokens.unwrap_or(usize::MAX).min(capacity / 4);
        let wanted = wanted.max(Self::answer_room(capacity));
        let prompt = loop {
            let rendered = self.template.render(self.tokenizer, &self.messages, true)?;
            let room = capacity.saturating_sub(rendered.ids.len());
            if room > wanted {
                break rendered.ids;
            }
            let first = usize::from(self.messages[0].role == Role::System);
            // The last message is the question and stays. A turn is dropped as a whole: an answer
            // without its question would mislead the model.
            if self.messages.len() - first <= 1 {
                if room > Self::answer_room(capacity) {
                    break rendered.ids;
                }
                let (found, limit) = (rendered.ids.len(), capacity);
                return Err(Error::PromptTooLong { found, limit });
            }
            self.messages.remove(first);
            self.n_forgotten += 1;
            while self.messages[first].role != Role::User {
                self.messages.remove(first);
                self.n_forgotten += 1;
            }
        };
        let mut limits = limits.clone();
        limits.stop_ids.extend(&self.stop_ids);
        let (sampling, n_drawn) = sampler.state();
        let request = Request { prompt, sampling, n_drawn, limits, continues_text: false };
        let generated = self.engine.generate(request, on_text)?;
        // The next answer continues the random stream.
        *sampler = Sampler::continued(sampling, generated.n_drawn)?;
        Ok(generated)
    }
}
