//! Requests to the engine, and its events.

use crate::{Error, Generated, Limits, Sampling, TokenLogprob};

/// A prompt to continue, with its settings.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Sampling of new tokens.
    pub sampling: Sampling,
    /// Number of random numbers of the seed's stream to skip. It is 0, except for a request that
    /// continues the draws of an earlier one ([`Generated::n_drawn`]).
    pub n_drawn: u64,
    /// Limits of the generation, and which log-probabilities are reported.
    pub limits: Limits,
    /// Whether the new text continues the text of the prompt. A space at its start then belongs to
    /// it. An answer in a conversation is a new text, whose first space is dropped.
    pub continues_text: bool,
}

impl Request {
    /// Creates a request to continue the text of a prompt.
    #[must_use]
    pub fn new(prompt: Vec<u32>, sampling: Sampling, limits: Limits) -> Self {
        Self { prompt, sampling, n_drawn: 0, limits, continues_text: true }
    }
}

/// The number of a request in its engine. Later requests have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// A result of one step for one request.
#[derive(Debug)]
pub enum Event {
    /// A new token of the answer.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Its log-probability, if [`Limits::logprobs`] requests it.
        logprob: Option<TokenLogprob>,
    },
    /// New text that can no longer change: whole characters, and no start of a stop text.
    Text {
        /// The request.
        id: RequestId,
        /// The new text.
        piece: String,
    },
    /// The end of a request.
    Finished {
        /// The request.
        id: RequestId,
        /// The whole answer.
        generated: Generated,
    },
    /// The end of a request by an error of its own.
    Failed {
        /// The request.
        id: RequestId,
        /// The error.
        error: Error,
    },
}
