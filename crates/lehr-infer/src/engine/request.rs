//! What goes into the engine, and what comes out.

use crate::{Error, Generated, Limits, Sampling, TokenLogprob};

/// A prompt to continue, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// How new tokens are chosen.
    pub sampling: Sampling,
    /// How many random numbers of the seed's stream are used up: 0, except for a request that
    /// continues the draws of an earlier one, see [`Generated::n_drawn`].
    pub n_drawn: u64,
    /// When generation ends, and what is reported of each token.
    pub limits: Limits,
    /// Whether the new text continues that of the prompt, so that a space at its start is part of
    /// it. An answer in a conversation begins a text of its own.
    pub continues_text: bool,
}

impl Request {
    /// A request to continue the text of a prompt.
    #[must_use]
    pub fn new(prompt: Vec<u32>, sampling: Sampling, limits: Limits) -> Self {
        Self { prompt, sampling, n_drawn: 0, limits, continues_text: true }
    }
}

/// A request within its engine. Later requests have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// What became of a request in a step.
#[derive(Debug)]
pub enum Event {
    /// A token was chosen, and is part of the answer.
    Token {
        /// Of which request.
        id: RequestId,
        /// The token.
        token: u32,
        /// How likely it was, if [`Limits::logprobs`] asks for it.
        logprob: Option<TokenLogprob>,
    },
    /// More text is certain: whole characters, and no beginning of a stop text.
    Text {
        /// Of which request.
        id: RequestId,
        /// The new text.
        piece: String,
    },
    /// The request has ended.
    Finished {
        /// Which request.
        id: RequestId,
        /// Everything that was generated.
        generated: Generated,
    },
    /// The request has ended because something is wrong with it.
    Failed {
        /// Which request.
        id: RequestId,
        /// What is wrong.
        error: Error,
    },
}
