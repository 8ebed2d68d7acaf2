//! How well a model predicts a text.

use lehr_infer::Loaded;
use lehr_tensor::{Tensor, no_grad};

/// The target of a position at which nothing is scored.
const NO_TARGET: i32 = -100;

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// The engine failed.
    #[error(transparent)]
    Tensor(#[from] lehr_tensor::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] lehr_model::Error),
    /// The text could not be encoded.
    #[error(transparent)]
    Infer(#[from] lehr_infer::Error),
    /// The windows do not fit the model.
    #[error(
        "scoring a text: windows of {window} tokens, each {stride} after the one before, expected \
         at least 3 and at most the model's context of {context}, and steps of at least 1, shorter \
         than a window"
    )]
    Windows {
        /// Tokens in a window.
        window: usize,
        /// From one window to the next.
        stride: usize,
        /// The model's context.
        context: usize,
    },
    /// The text has no token to predict.
    #[error("scoring a text: it has {found} tokens, expected one and another to predict from it")]
    TextTooShort {
        /// Tokens of the text.
        found: usize,
    },
}

impl PerplexityError {
    /// What the user can do about it, if the error knows.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Infer(error) => error.hint(),
            Self::Windows { .. } => Some("leave --window and --stride out".to_owned()),
            Self::TextTooShort { .. } => Some("give a longer text".to_owned()),
        }
    }
}

type Result<T> = std::result::Result<T, PerplexityError>;

/// The negative log-likelihood of a text under a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// −Σ ln p over the scored tokens, in nats.
    pub nll: f64,
    /// Number of scored tokens.
    pub n_tokens: usize,
    /// Number of UTF-8 bytes of the scored tokens.
    pub n_bytes: usize,
    /// Number of windows.
    pub n_windows: usize,
}

impl std::ops::AddAssign for Perplexity {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.n_tokens += other.n_tokens;
        self.n_bytes += other.n_bytes;
        self.n_windows += other.n_windows;
    }
}

impl Perplexity {
    /// Returns exp(nll / n_tokens). It depends on the tokenizer, so it compares only models that
    /// share a vocabulary.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.n_tokens as f64).exp()
    }

    /// Returns nll / (ln 2 · n_bytes), in bits. It compares models of any vocabulary.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / std::f64::consts::LN_2 / self.n_bytes as f64
    }
}

/// The windows in which a text is scored. They set how many tokens precede a scored token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Length of a window in tokens, the model's begin token included.
    pub window: usize,
    /// Number of tokens from the start of one window to the start of the next.
    pub stride: usize,
}

impl Windows {
    /// Returns the default windows: 1024 tokens, or the model's context if it is shorter, with a
    /// stride of half a window.
    #[must_use]
    pub fn of_context(context: usize) -> Self {
        let window = context.min(1024);
        Self { window, stride: window.div_ceil(2) }
    }
}

/// A model that scores texts, one document at a time, in windows.
pub struct Scorer<'a> {
    loaded: &'a Loaded,
    windows: Windows,
    /// The tokens that begin every window.
    before: Vec<i32>,
}

impl<'a> Scorer<'a> {
    /// Prepares scoring in `windows`.
    ///
    /// # Errors
    /// If the model is an encoder, or a window is longer than its context.
    pub fn new(loaded: &'a Loaded, windows: Windows) -> Result<Self> {
        let Loaded { model, tokenizer, .. } = loaded;
        model.check_causal("scoring a text")?;
        let Windows { window, stride } = windows;
        let before: Vec<i32> = tokenizer.prefix_ids().iter().map(|id| *id as i32).collect();
        let context = model.spec().max_positions;
        let n = before.len();
        if window > context || window < n + 2 || stride == 0 || stride + n.max(1) > window {
            return Err(PerplexityError::Windows { window, stride, context });
        }
        Ok(Self { loaded, windows, before })
    }

    /// Scores a document in overlapping windows and sums −ln p of its tokens.
    ///
    /// A window scores only the tokens that no earlier window contains, so every token is scored
    /// once. Outside the first window a scored token has at least `window − stride` tokens before
    /// it. If the tokenizer has a begin token, every window starts with it. Otherwise nothing
    /// precedes the first token of the document, which is not scored.
    ///
    /// After each window, `on_window(done, total)` is called.
    ///
    /// # Errors
    /// If the model needs special tokens in its prompt, or the document has fewer than two tokens.
    pub fn score(&self, text: &str, on_window: &mut dyn FnMut(usize, usize)) -> Result<Perplexity> {
        let tokenizer = &self.loaded.tokenizer;
        let Windows { window, stride } = self.windows;
        let ids = tokenizer.encode(text).map_err(lehr_infer::Error::from)?;
        lehr_infer::check_ids(&ids, tokenizer, &self.loaded.model)?;
        let first = usize::from(self.before.is_empty());
        if ids.len() <= first {
            return Err(PerplexityError::TextTooShort { found: ids.len() });
        }
        let n_bytes = text.len() - tokenizer.decode_bytes(&ids[..first]).len();
        let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
        let room = window - self.before.len();
        let n_windows = 1 + ids.len().saturating_sub(room).div_ceil(stride);
        let mut total = Perplexity { nll: 0.0, n_tokens: 0, n_bytes, n_windows };
        let mut scored = first;
        for at in 0..n_windows {
            let start = at * stride;
            let end = (start + room).min(ids.len());
            let run = [&self.before[..], &ids[start..end]].concat();
            let n_new = end - scored;
            total.nll += no_grad(|| nll_of_last(self.loaded, &run, n_new))?;
            total.n_tokens += n_new;
            scored = end;
            on_window(at + 1, n_windows);
        }
        Ok(total)
    }
}

/// Computes −Σ ln p of the last `n` of the tokens `ids`, which must not include the first one.
fn nll_of_last(loaded: &Loaded, ids: &[i32], n: usize) -> Result<f64> {
    let model = &loaded.model;
    // A token is predicted at the position before it. The head runs only where there is a target.
    let mut targets = vec![NO_TARGET; ids.len()];
    let first = ids.len() - n;
    targets[first - 1..ids.len() - 1].copy_from_slice(&ids[first..]);
    let targets = Tensor::from_ids(&targets, [1, ids.len()])?;
    let logprobs = model.token_logprobs(&model.tokens(ids, 1)?, &targets)?.to_host()?;
    // f64, because a text may have millions of tokens. Positions without a target hold 0.
    Ok(-logprobs.data().iter().copied().map(f64::from).sum::<f64>())
}
