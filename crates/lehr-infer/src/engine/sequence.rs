//! A request at work: its tokens so far and the state of its sampler.

use lehr_model::{Layout, Model};
use lehr_tokenizer::Tokenizer;

use super::{Event, Request, RequestId};
use crate::continuation::Continuation;
use crate::{Error, Finish, Generated, Result, Sampler, TokenLogprob};

/// A request with its tokens.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The prompt and what was generated. The last token of a sequence that is decoded is yet to be
    /// run.
    pub(super) tokens: Vec<i32>,
    /// How many of them are the prompt.
    pub(super) n_prompt: usize,
    pub(super) sampler: Sampler,
    /// How many alternatives are reported of each token, if any.
    pub(super) logprobs: Option<usize>,
    /// Where the tokens stand, and how many of the first have to be run in one call.
    pub(super) layout: Layout,
    new: Continuation,
    /// The row of the cache; without meaning while it waits.
    pub(super) row: usize,
    /// Whether all tokens but the last have been run.
    pub(super) is_decoding: bool,
    /// How many tokens were in the cache when it first began.
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

    /// Whether there are as many new tokens as there may be.
    pub(super) fn is_complete(&self) -> bool {
        self.new.is_complete()
    }

    /// The prompt's tokens, and those after it.
    pub(super) fn parts(&self) -> (&[i32], &[i32]) {
        self.tokens.split_at(self.n_prompt)
    }

    /// Chooses the next token from `logits [V]`.
    ///
    /// # Errors
    /// If they are not numbers.
    pub(super) fn choose(&mut self, mut logits: Vec<f32>) -> Result<Choice> {
        check_logits(&logits)?;
        let unchanged = self.logprobs.map(|n| (logits.clone(), n));
        let token = self.sampler.pick(&mut logits, &self.tokens, self.n_prompt);
        let logprob = unchanged.map(|(logits, n)| TokenLogprob::new(&logits, token, n));
        Ok(Choice { token, logprob })
    }

    /// Appends a token, and says why the sequence ends if it does. The sequence may have `context`
    /// tokens.
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

    /// Ends the sequence: the text that was held back, and all that was generated.
    pub(super) fn end(self, finish: Finish) -> (String, Generated) {
        let (_, n_drawn) = self.sampler.state();
        let (rest, generated) = self.new.end(finish);
        (rest, Generated { n_drawn, n_reused: self.n_reused.unwrap_or(0), ..generated })
    }
}

/// An error unless there are probabilities: a NaN, or an infinite largest logit, leaves none.
fn check_logits(logits: &[f32]) -> Result<()> {
    let n_nan = logits.iter().filter(|logit| logit.is_nan()).count();
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match n_nan == 0 && top.is_finite() {
        true => Ok(()),
        false => Err(Error::Logits { n_nan, top, n: logits.len() }),
    }
}
