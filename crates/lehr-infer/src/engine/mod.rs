//! The one engine under everything that generates: requests go in, and step by step their tokens
//! come out.

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

/// How much an [`Engine`] works on at once.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Most sequences at once; other requests wait.
    pub max_sequences: usize,
    /// Most tokens of a sequence, prompt and new tokens together. `None` = the model's context.
    pub context: Option<usize>,
    /// Most tokens of all sequences together whose keys and values are in memory. `None` = as many
    /// as so many sequences of that length have.
    pub cache_tokens: Option<usize>,
    /// Most prompt tokens that are read between two decoding steps, so that a long prompt does not
    /// make the others wait.
    pub prefill_budget: usize,
    /// Whether a request reuses the keys and values of an earlier one whose tokens begin alike.
    pub reuse_prefixes: bool,
}

impl EngineSettings {
    /// For one sequence at a time.
    pub const ONE: Self = Self {
        max_sequences: 1,
        context: None,
        cache_tokens: None,
        prefill_budget: PREFILL_CHUNK,
        reuse_prefixes: true,
    };
}

/// Prompt tokens that are run in one call, except for a bidirectional prefix, which cannot be cut.
/// It bounds the memory of activations.
const PREFILL_CHUNK: usize = 512;

/// A model at work on requests.
///
/// Each [`Engine::step`] appends one token to every sequence that is being decoded, and reads a
/// part of the prompts of the others. The keys and values of all sequences are in the pages of one
/// cache. When the pages run out, the request that arrived last is preempted: it gives its pages
/// back, waits, and its tokens are run again later.
///
/// On the CPU the tokens and log-probabilities of a request are bit for bit the same whatever else
/// is at work, however its prompt is cut, and whether a prefix was reused.
pub struct Engine<'m> {
    model: &'m Model,
    /// None if nobody reads the text.
    tokenizer: Option<&'m Tokenizer>,
    cache: PagedCache,
    step: Box<dyn Step>,
    /// One more than the largest id that may be chosen.
    n_ids: usize,
    prefill_budget: usize,
    /// Without pages, by arrival.
    waiting: VecDeque<Sequence>,
    /// With a row of the cache, by arrival.
    running: Vec<Sequence>,
    last_id: u64,
}

impl<'m> Engine<'m> {
    /// An engine without requests. Its cache takes memory as sequences grow.
    ///
    /// # Errors
    /// If the model is an encoder, there is to be no sequence at once, or memory runs out.
    pub fn new(
        model: &'m Model,
        tokenizer: &'m Tokenizer,
        settings: EngineSettings,
    ) -> Result<Self> {
        Self::build(model, Some(tokenizer), settings)
    }

    /// An engine that gives tokens without their text, all of the model's vocabulary.
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
        // Rows of the embedding beyond the tokenizer's ids are padding, and never chosen.
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

    /// Most tokens of a sequence, prompt and new tokens together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.cache.context()
    }

    /// Tokens that the cache has memory for so far.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.n_pages() * PagedCache::PAGE_LEN
    }

    /// Takes in a request. It is checked at once and worked on by [`Engine::step`]; requests begin
    /// in the order in which they came.
    ///
    /// # Errors
    /// If the prompt is empty, fills the context, has an id outside of the vocabulary or lacks the
    /// tokens that its model needs, or a setting is out of range. Other requests are unaffected.
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
            return Err(Error::TokenId { id, vocab_size });
        }
        let id = RequestId(self.last_id + 1);
        let sequence = Sequence::new(id, request, (self.model, self.tokenizer))?;
        self.last_id += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Stops a request and gives what was generated so far; `None` if it has ended already.
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

    /// Stops all requests.
    pub fn cancel_all(&mut self) {
        self.running.drain(..).for_each(|sequence| self.cache.end(sequence.row));
        self.waiting.clear();
    }

    /// Does one round of work: waiting requests begin where there is room, one more token is
    /// generated for each sequence whose prompt has been read, and a part of the other prompts is
    /// read. Gives what became of it, in order.
    ///
    /// # Errors
    /// If the device fails or memory runs out in the work on several sequences at once: then all
    /// requests are dropped. What is wrong with a single request is an [`Event::Failed`].
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

    /// Works on a single request until it ends. `on_text` gets each new piece of whole characters
    /// and may stop the generation.
    ///
    /// # Errors
    /// If the request cannot be taken in, other requests are at work, or the model or the device
    /// fails.
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
