//! The generated part of one sequence: token ids, decoded text, log-probabilities and the reason it
//! ended.

use lehr_tokenizer::{StreamDecoder, Tokenizer};

use crate::stop::StopText;

/// The limits of a generation, and the log-probabilities to report.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Maximum number of new tokens; `None` = until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_ids: Vec<u32>,
    /// Number of most likely alternatives to report with the log-probability of each new token.
    /// `None` = report no log-probabilities.
    pub logprobs: Option<usize>,
}

/// The reason generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model generated a stop token or a stop text.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// The request was cancelled.
    Cancelled,
}

impl Finish {
    /// Returns the reason as a word for files and protocols.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The generated part of a sequence.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Their text, without stop text.
    pub text: String,
    /// The reason it ended.
    pub finish: Finish,
    /// The log-probability of each new token, if [`Limits::logprobs`] requested it.
    pub logprobs: Vec<TokenLogprob>,
    /// Number of random numbers of the seed's stream drawn so far. A request that continues the
    /// draws starts from it.
    pub n_drawn: u64,
    /// Number of prompt tokens whose cached keys and values were reused from an earlier request.
    pub n_reused: usize,
}

/// The log-probability of a token under the model, before penalties, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// ln p of the chosen token.
    pub logprob: f32,
    /// The most likely tokens with their ln p, in descending order.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// Computes it for the token `id` chosen from `logits`, with the `n` most likely tokens.
    pub(crate) fn new(logits: &[f32], id: u32, n: usize) -> Self {
        let by_value =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let n = n.min(ids.len());
        if n > 0 && n < ids.len() {
            ids.select_nth_unstable_by(n, by_value);
        }
        ids.truncate(n);
        ids.sort_unstable_by(by_value);
        let normalizer = log_sum_exp(logits);
        let top = ids.iter().map(|id| (*id, logits[*id as usize] - normalizer)).collect();
        Self { logprob: logits[id as usize] - normalizer, top }
    }
}

/// Computes ln Σ exp(logit). The sum is in f64, and the largest logit is subtracted first so that
/// no exponential overflows. One row on the host does not need the tensor op.
fn log_sum_exp(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - top).exp())).sum();
    top + sum.ln() as f32
}

/// The generated part of a sequence while it grows.
pub(crate) struct Continuation {
    limits: Limits,
    /// `None` if only tokens are wanted.
    stream: Option<StreamDecoder>,
    text: StopText,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
}

/// The effect of an appended token.
pub(crate) struct Pushed {
    /// Whether the token is part of the answer. A stop token is not.
    pub(crate) is_part: bool,
    /// The text that can no longer change.
    pub(crate) piece: String,
    /// The reason if the sequence ends.
    pub(crate) finish: Option<Finish>,
}

impl Continuation {
    /// Starts an empty continuation. With `continues_text` it keeps a space at its start, because
    /// it follows other text. Special tokens are not part of its text; one that is named as a stop
    /// text ends it all the same.
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        mut limits: Limits,
        continues_text: bool,
    ) -> Self {
        let stream = tokenizer.map(|tokenizer| match continues_text {
            true => tokenizer.continuing_decoder().without_special(),
            false => tokenizer.stream_decoder().without_special(),
        });
        let named = |text: &String| tokenizer.and_then(|tokenizer| tokenizer.special(text));
        limits.stop_ids.extend(limits.stop.iter().filter_map(named));
        let text = StopText::new(limits.stop.clone());
        Self { limits, stream, text, ids: Vec::new(), logprobs: Vec::new() }
    }

    /// Returns whether the limit of new tokens is reached.
    pub(crate) fn is_complete(&self) -> bool {
        self.limits.max_tokens.is_some_and(|max| self.ids.len() >= max)
    }

    /// Appends a token. `has_room` says whether the context has room for it.
    pub(crate) fn push(
        &mut self,
        id: u32,
        logprob: Option<TokenLogprob>,
        has_room: bool,
    ) -> Pushed {
        if self.limits.stop_ids.contains(&id) {
            return Pushed { is_part: false, piece: String::new(), finish: Some(Finish::Stop) };
        }
        self.ids.push(id);
        self.logprobs.extend(logprob);
        let text = self.stream.as_mut().map_or_else(String::new, |stream| stream.push(id));
        let (piece, stopped) = self.text.push(&text);
        let finish = if stopped {
            Some(Finish::Stop)
        } else if !has_room {
            Some(Finish::ContextFull)
        } else {
            self.is_complete().then_some(Finish::Length)
        };
        Pushed { is_part: true, piece, finish }
    }

    /// Ends it. Returns the text held back so far, and the whole answer.
    pub(crate) fn end(mut self, finish: Finish) -> (String, Generated) {
        let mut rest = String::new();
        if !(finish == Finish::Stop && self.text.stopped) {
            let text = self.stream.take().map_or_else(String::new, StreamDecoder::finish);
            rest = self.text.push(&text).0 + &self.text.flush();
        }
        let (ids, text, logprobs) = (self.ids, self.text.released, self.logprobs);
        (rest, Generated { ids, text, finish, logprobs, n_drawn: 0, n_reused: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let want = |id: usize| (f64::from(logits[id]).exp() / total).ln();
        let found = TokenLogprob::new(&logits, 3, 2);
        assert!((f64::from(found.logprob) - want(3)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
        assert!((f64::from(found.top[1].1) - want(2)).abs() < 1e-6);
        assert_eq!(TokenLogprob::new(&logits, 0, 9).top.len(), 4);
        assert_eq!(TokenLogprob::new(&logits, 0, 0).top, []);
    }

    #[test]
    fn special_tokens_are_not_text_and_end_it_if_named_as_a_stop_text() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../lehr-tokenizer/tests/golden/bpe.model");
        let tokenizer = Tokenizer::from_sentencepiece(&std::fs::read(path).unwrap()).unwrap();
        let (begin, end) = (tokenizer.special("<s>").unwrap(), tokenizer.special("</s>").unwrap());
        let word = tokenizer.encode("the").unwrap();
        let limits = Limits { stop: vec!["</s>".to_owned()], ..Limits::default() };
        let mut new = Continuation::new(Some(&tokenizer), limits, false);
        for id in word.iter().chain([&begin]) {
            assert_eq!(new.push(*id, None, true).finish, None);
        }
        assert_eq!(new.push(end, None, true).finish, Some(Finish::Stop));
        let (_, generated) = new.end(Finish::Stop);
        assert_eq!(generated.text, "the");
        assert_eq!(generated.ids.last(), Some(&begin));
    }

    #[test]
    fn a_continuation_keeps_the_space_at_its_start_and_an_answer_drops_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../lehr-tokenizer/tests/golden/bpe.model");
        let tokenizer = Tokenizer::from_sentencepiece(&std::fs::read(path).unwrap()).unwrap();
        // The first word of a text stands behind a space that is not written.
        let ids = tokenizer.encode("the").unwrap();
        let text = |continues| {
            let mut new = Continuation::new(Some(&tokenizer), Limits::default(), continues);
            let pieces: String = ids.iter().map(|id| new.push(*id, None, true).piece).collect();
            let (rest, generated) = new.end(Finish::Length);
            assert_eq!(pieces + &rest, generated.text);
            generated.text
        };
        assert_eq!((text(true).as_str(), text(false).as_str()), (" the", "the"));
    }
}
