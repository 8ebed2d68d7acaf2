//! Token by token generation with a preallocated KV cache.

use std::ops::ControlFlow;

use lehr_model::{KvCache, Model, Tokens};
use lehr_tokenizer::Tokenizer;

use crate::{Error, Result, Sampler};

/// Prompt tokens processed at once: bounds the memory of activations.
const PREFILL_BLOCK: usize = 512;

/// When generation ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// At most so many new tokens; `None` = until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_ids: Vec<u32>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or stop text came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The receiver of the text asked to stop.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Their text, without stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// A model at work on one text: the tokens so far and their keys and values.
pub struct Generator<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    cache: KvCache,
    /// Tokens whose keys and values are in the cache.
    seen: Vec<i32>,
}

impl<'a> Generator<'a> {
    /// Prepares a cache of `capacity` positions, at most the model's context.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(model: &'a Model, tokenizer: &'a Tokenizer, capacity: usize) -> Result<Self> {
        let spec = model.spec();
        let cache = KvCache::new(&spec, 1, capacity.min(spec.max_positions))?;
        Ok(Self { model, tokenizer, cache, seen: Vec::new() })
    }

    /// Positions there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Continues `prompt`. What it shares with the text before stays in the cache. `on_text` gets
    /// each new piece of whole characters and may stop the generation.
    ///
    /// # Errors
    /// If the prompt is empty or fills the context.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        limits: &Limits,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let prompt: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
        let mut logits = self.prefill(&prompt)?;
        let mut stream = self.tokenizer.stream_decoder();
        let mut text = StopText::new(&limits.stop);
        let mut ids = Vec::new();
        let finish = loop {
            if limits.max_tokens.is_some_and(|max| ids.len() >= max) {
                break Finish::Length;
            }
            let id = sampler.pick(&mut logits, &self.seen);
            if limits.stop_ids.contains(&id) {
                break Finish::Stop;
            }
            ids.push(id);
            let (piece, stopped) = text.push(&stream.push(id));
            if !piece.is_empty() && on_text(&piece).is_break() {
                break Finish::Cancelled;
            }
            if stopped {
                break Finish::Stop;
            }
            if self.seen.len() >= self.capacity() {
                break Finish::ContextFull;
            }
            logits = self.advance(&[id as i32])?;
        };
        let stopped = finish == Finish::Stop && text.stopped;
        if !stopped {
            let (piece, _) = text.push(&stream.finish());
            let rest = piece + &text.flush();
            if !rest.is_empty() && finish != Finish::Cancelled {
                let _ = on_text(&rest);
            }
        }
        Ok(Generated { ids, text: text.released, finish })
    }

    /// Brings the cache to the end of `prompt` and returns the logits of the next token.
    fn prefill(&mut self, prompt: &[i32]) -> Result<Vec<f32>> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.capacity() {
            let (found, limit) = (prompt.len(), self.capacity());
            return Err(Error::PromptTooLong { found, limit });
        }
        let shared = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always run: its logits are what is asked for.
        let shared = shared.min(prompt.len() - 1);
        self.cache.truncate(shared);
        self.seen.truncate(shared);
        let mut logits = Vec::new();
        for block in prompt[shared..].chunks(PREFILL_BLOCK) {
            logits = self.advance(block)?;
        }
        Ok(logits)
    }

    /// Runs new tokens and returns the logits after the last.
    fn advance(&mut self, ids: &[i32]) -> Result<Vec<f32>> {
        let tokens = Tokens::new(ids, 1, self.seen.len())?;
        let logits = self.model.next_logits(&tokens, &mut self.cache)?;
        self.seen.extend_from_slice(ids);
        // Rows beyond the tokenizer's ids are padding of the embedding.
        Ok(logits.data()[..self.tokenizer.vocab_size().min(logits.data().len())].to_vec())
    }
}

/// Releases text only when it can no longer be the beginning of a stop text.
struct StopText<'a> {
    stop: &'a [String],
    held: String,
    released: String,
    stopped: bool,
}

impl<'a> StopText<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self { stop, held: String::new(), released: String::new(), stopped: false }
    }

    /// Takes new text; gives what may be shown, and whether a stop text came.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found =
            self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s)).min();
        let free = match found {
            Some(at) => at,
            None => self.held.len() - self.longest_beginning(),
        };
        let shown: String = self.held.drain(..free).collect();
        self.released.push_str(&shown);
        self.stopped = found.is_some();
        (shown, self.stopped)
    }

    /// Length of the longest end of the held text with which a stop text begins.
    fn longest_beginning(&self) -> usize {
        let ends = self.held.char_indices().map(|(i, _)| i);
        let may_begin = |i: &usize| self.stop.iter().any(|s| s.starts_with(&self.held[*i..]));
        ends.into_iter().find(may_begin).map_or(0, |i| self.held.len() - i)
    }

    /// The text still held, when no more will come.
    fn flush(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.released.push_str(&rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<_> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut text = StopText::new(&stop);
        let mut shown = Vec::new();
        for piece in pieces {
            let (out, stopped) = text.push(piece);
            shown.push(out);
            if stopped {
                return (shown, true);
            }
        }
        shown.push(text.flush());
        (shown, false)
    }

    #[test]
    fn a_stop_text_across_tokens_is_never_shown() {
        let (shown, stopped) = feed(&["\nUser:"], &["Hello", "\n", "Us", "er:", "x"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "Hello");
    }

    #[test]
    fn a_false_beginning_is_shown_in_the_end() {
        let (shown, stopped) = feed(&["终了"], &["a终", "b", "终"]);
        assert!(!stopped);
        assert_eq!(shown, ["a", "终b", "", "终"]);
    }
}
