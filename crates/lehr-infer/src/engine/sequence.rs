//! The state of one request: its tokens so far, its sampler and its row of the cache.

use lehr_model::{Layout, Model};
use lehr_tokenizer::Tokenizer;

use super::{Event, Request, RequestId};
use crate::continuation::Continuation;
use crate::{Finish, Generated, Result, Sampler, TokenLogprob};

/// A submitted request.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The prompt, then the generated tokens. In decoding, the last token has not been run yet.
    pub(super) tokens: Vec<i32>,
    /// Number of prompt tokens.
    pub(super) n_prompt: usize,
    pub(super) sampler: Sampler,
    /// Number of alternatives to report with the log-probability of each token; `None` = report no
    /// log-probabilities.
    pub(super) logprobs: Option<usize>,
    /// Positions of the tokens, and the length of the bidirectional prefix.
    pub(super) layout: Layout,
    new: Continuation,
    /// The row of the cache. It has no meaning while the request waits.
    pub(super) row: usize,
    /// Whether all tokens except the last have been run.
    pub(super) is_decoding: bool,
    /// Number of its tokens that the cache already held when it first began.
    pub(super) n_reused: Option<usize>,
}

/// A chosen token.
pub(super) struct Choice {
    pub(super) token: u32,
    pub(super) logprob: Option<TokenLogprob>,
}

impl Sequence {
    pub(super) fn new(
        id: RequestId,
        request: Request,
        (model, tokenizer): (&Model, Option<&Tokenizer>),
    ) -> Result<Self> {
        let Request { prompt, sampling, n_drawn, limits, continues_text } = request;
        let tokens: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
        Ok(Self {
            id,
            n_prompt: tokens.len(),
            layout: model.layout(&tokens)?,
            tokens,
            sampler: Sampler::continued(sampling, n_drawn)?,
            logprobs: limits.logprobs,
            new: Continuation::new(tokenizer, limits, continues_text),
            row: 0,
            is_decoding: false,
            n_reused: None,
        })
    }

    /// Returns whether the limit of new tokens is reached.
    pub(super) fn is_complete(&self) -> bool {
        self.new.is_complete()
    }

    /// Returns the prompt and the generated tokens.
    pub(super) fn parts(&self) -> (&[i32], &[i32]) {
        self.tokens.split_at(self.n_prompt)
    }

    /// Chooses the next token from `logits [V]`.
    ///
    /// # Errors
    /// If a logit is NaN or the largest is infinite.
    pub(super) fn choose(&mut self, mut logits: Vec<f32>) -> Result<Choice> {
        let unchanged = self.logprobs.map(|n| (logits.clone(), n));
        let token = self.sampler.pick(&mut logits, &self.tokens, self.n_prompt)?;
        let logprob = unchanged.map(|(logits, n)| TokenLogprob::new(&logits, token, n));
        Ok(Choice { token, logprob })
    }

    /// Appends a token and returns the reason if the sequence ends with it. `context` is the
    /// maximum length of the sequence.
    pub(super) fn push(
        &mut self,
        choice: Choice,
        context: usize,
        events: &mut Vec<Event>,
    ) -> Option<Finish> {
        let (id, token) = (self.id, choice.token);
        let has_room = self.tokens.len() < context;
        self.tokens.push(token as i32);
        let pushed = self.new.push(token, choice.logprob.clone(), has_room);
        if pushed.is_part {
            events.push(Event::Token { id, token, logprob: choice.logprob });
        }
        if !pushed.piece.is_empty() {
            events.push(Event::Text { id, piece: pushed.piece });
        }
        pushed.finish
    }

    /// Ends the sequence. Returns the text held back so far, and the whole answer.
    pub(super) fn end(self, finish: Finish) -> (String, Generated) {
        let (_, n_drawn) = self.sampler.state();
        let (rest, generated) = self.new.end(finish);
        (rest, Generated { n_drawn, n_reused: self.n_reused.unwrap_or(0), ..generated })
    }
}
