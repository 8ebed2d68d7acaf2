//! The engine under everything that generates: requests go in, and each step yields their tokens.
//!
//! The keys and values of all sequences share one paged cache. A request passes through three
//! states. It *waits* without pages. It is *prefilled*: its prompt is run in chunks, which fills
//! its pages. It is *decoded*: each step runs its last token and chooses the next. `schedule.rs`
//! decides what happens in a step, `step.rs` runs the decoded sequences as one batch.

mod request;
mod schedule;
mod sequence;
mod step;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use lehr_model::{Model, PagedCache, PagedSize};
use lehr_tokenizer::Tokenizer;

pub use self::request::{Event, Request, RequestId};
use self::sequence::Sequence;
use self::step::Step;
use crate::{Error, Finish, Generated, Result};

/// Limits on the work of an [`Engine`].
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Maximum number of sequences at once. Other requests wait.
    pub max_sequences: usize,
    /// Maximum length of a sequence in tokens, prompt included. `None` = the model's context.
    pub context: Option<usize>,
    /// Maximum number of cached tokens of all sequences together. `None` = enough for
    /// `max_sequences` sequences of full length.
    pub cache_tokens: Option<usize>,
    /// Maximum number of prompt tokens run between two decoding steps. It bounds how long a long
    /// prompt delays the tokens of other requests.
    pub prefill_budget: usize,
    /// Whether a request reuses the cached pages of an earlier one with the same first tokens.
    pub reuse_prefixes: bool,
}

impl EngineSettings {
    /// Settings for one sequence at a time.
    pub const ONE: Self = Self {
        max_sequences: 1,
        context: None,
        cache_tokens: None,
        prefill_budget: PREFILL_CHUNK,
        reuse_prefixes: true,
    };
}

/// Maximum number of prompt tokens in one forward pass, which bounds the memory of activations. A
/// bidirectional prefix may exceed it: its tokens attend to one another and need one pass.
const PREFILL_CHUNK: usize = 512;

/// A scheduler that generates for many requests with one model.
///
/// Each [`Engine::step`] appends one token to every sequence in decoding, and prefills a part of
/// the other prompts. The keys and values of all sequences are in the pages of one cache. When the
/// pages run out, the latest request is preempted: it releases its pages, waits, and is prefilled
/// again later.
///
/// On the CPU, results are batch-invariant. The tokens and log-probabilities of a request are bit
/// for bit those it gets alone, with any other requests, any chunks of its prompt, and with or
/// without a reused prefix.
pub struct Engine<'m> {
    model: &'m Model,
    /// `None` if only tokens are wanted.
    tokenizer: Option<&'m Tokenizer>,
    cache: PagedCache,
    step: Box<dyn Step>,
    /// Number of ids that may be chosen: 0 to `n_ids` − 1.
    n_ids: usize,
    prefill_budget: usize,
    /// Requests without pages, by arrival.
    waiting: VecDeque<Sequence>,
    /// Requests with a row of the cache, by arrival.
    running: Vec<Sequence>,
    last_id: u64,
}

impl<'m> Engine<'m> {
    /// Creates an engine without requests. Its cache allocates memory as sequences grow.
    ///
    /// # Errors
    /// If the model is an encoder, `max_sequences` is 0, or memory runs out.
    pub fn new(
        model: &'m Model,
        tokenizer: &'m Tokenizer,
        settings: EngineSettings,
    ) -> Result<Self> {
        Self::build(model, Some(tokenizer), settings)
    }

    /// Creates an engine that yields tokens without text, from the model's whole vocabulary.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn without_text(model: &'m Model, settings: EngineSettings) -> Result<Self> {
        Self::build(model, None, settings)
    }

    fn build(
        model: &'m Model,
        tokenizer: Option<&'m Tokenizer>,
        settings: EngineSettings,
    ) -> Result<Self> {
        if settings.max_sequences == 0 {
            return Err(Error::EmptyBatch);
        }
        let size = PagedSize {
            max_sequences: settings.max_sequences,
            context: settings.context.unwrap_or(usize::MAX),
            max_pages: settings.cache_tokens.map_or(usize::MAX, PagedCache::pages_for),
            reuse_prefixes: settings.reuse_prefixes,
        };
        let cache = PagedCache::new(model, size)?;
        // Rows of the embedding beyond the tokenizer's ids are padding and must not be chosen.
        let n_ids = tokenizer.map_or(usize::MAX, Tokenizer::vocab_size);
        let n_ids = n_ids.min(model.spec().vocab_size);
        let step = step::step_for(model, &cache, n_ids)?;
        Ok(Self {
            model,
            tokenizer,
            cache,
            step,
            n_ids,
            prefill_budget: settings.prefill_budget.max(1),
            waiting: VecDeque::new(),
            running: Vec::new(),
            last_id: 0,
        })
    }

    /// Returns the maximum length of a sequence in tokens, prompt included.
    #[must_use]
    pub fn context(&self) -> usize {
        self.cache.context()
    }

    /// Returns the number of tokens for which the cache has allocated memory.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.n_pages() * PagedCache::PAGE_LEN
    }

    /// Checks a request and queues it for [`Engine::step`]. Requests begin in order of arrival.
    ///
    /// # Errors
    /// If the prompt is empty, fills the context, has an id outside the vocabulary or lacks the
    /// special tokens its model needs, or a setting is out of range. Other requests are unaffected.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let (found, limit) = (request.prompt.len(), self.context());
        if found == 0 {
            return Err(Error::EmptyPrompt);
        }
        if found >= limit {
            return Err(Error::PromptTooLong { found, limit });
        }
        if self.tokenizer.is_none() && !request.limits.stop.is_empty() {
            return Err(Error::StopWithoutText);
        }
        let vocab_size = self.model.spec().vocab_size;
        if let Some(&id) = request.prompt.iter().find(|id| **id as usize >= vocab_size) {
            let token = self.tokenizer.map(|tokenizer| tokenizer.decode(&[id]));
            return Err(Error::TokenId { id, token: token.unwrap_or_default(), vocab_size });
        }
        let id = RequestId(self.last_id + 1);
        let sequence = Sequence::new(id, request, (self.model, self.tokenizer))?;
        self.last_id += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Returns whether there are no requests.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Cancels a request and returns its tokens so far; `None` if it has already ended.
    pub fn cancel(&mut self, id: RequestId) -> Option<Generated> {
        let sequence = match self.running.iter().position(|s| s.id == id) {
            Some(at) => {
                let sequence = self.running.remove(at);
                self.cache.end(sequence.row);
                sequence
            }
            None => {
                let at = self.waiting.iter().position(|s| s.id == id)?;
                self.waiting.remove(at)?
            }
        };
        Some(sequence.end(Finish::Cancelled).1)
    }

    /// Cancels all requests.
    pub fn cancel_all(&mut self) {
        self.running.drain(..).for_each(|sequence| self.cache.end(sequence.row));
        self.waiting.clear();
    }

    /// Runs one round and returns its events in order.
    ///
    /// A round admits waiting requests that have room, decodes one token of each sequence whose
    /// prompt is complete, and prefills a part of the other prompts. Decoding precedes prefilling,
    /// so a new prompt delays running answers by at most one budget of prompt tokens.
    ///
    /// # Errors
    /// If the device fails or memory runs out while several sequences are decoded together. All
    /// requests are then dropped. An error of a single request is an [`Event::Failed`].
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.admit(&mut events);
        if let Err(error) = self.decode(&mut events) {
            self.cancel_all();
            return Err(error);
        }
        self.prefill(&mut events);
        Ok(events)
    }

    /// Runs a single request until it ends. `on_text` receives each new piece of whole characters
    /// and may stop the generation.
    ///
    /// # Errors
    /// If the request is refused, the engine has other requests, or the model or the device fails.
    pub fn generate(
        &mut self,
        request: Request,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        if !self.is_idle() {
            return Err(Error::Busy { n: self.waiting.len() + self.running.len() });
        }
        let own = self.submit(request)?;
        loop {
            let mut is_stopped = false;
            for event in self.step()? {
                match event {
                    Event::Text { piece, .. } if !is_stopped => {
                        is_stopped = on_text(&piece).is_break();
                    }
                    Event::Token { .. } | Event::Text { .. } => {}
                    Event::Failed { error, .. } => return Err(error),
                    Event::Finished { mut generated, .. } => {
                        if is_stopped {
                            generated.finish = Finish::Cancelled;
                        }
                        return Ok(generated);
                    }
                }
            }
            if let Some(generated) = is_stopped.then(|| self.cancel(own)).flatten() {
                return Ok(generated);
            }
        }
    }
}
