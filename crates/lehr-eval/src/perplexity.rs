//! How well a model predicts a text.

use lehr_infer::Loaded;
use lehr_tensor::{Tensor, no_grad};

/// Rows of logits that are in memory at once.
const LOGIT_ROWS: usize = 64;

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
    /// There is nothing to predict.
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

/// What a model makes of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// −Σ ln p over the scored tokens, in nats.
    pub nll: f64,
    /// Number of scored tokens.
    pub n_tokens: usize,
    /// Bytes of text that they stand for.
    pub n_bytes: usize,
    /// Number of windows.
    pub n_windows: usize,
}

impl Perplexity {
    /// exp of the mean −ln p of a token. It depends on the tokenizer: only models of one vocabulary
    /// can be compared by it.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.n_tokens as f64).exp()
    }

    /// −Σ log₂ p for each byte of text, which models of any vocabulary can be compared by.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / std::f64::consts::LN_2 / self.n_bytes as f64
    }
}

/// Which tokens a model sees when it predicts one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens that are run together, the model's begin token included.
    pub window: usize,
    /// By how many tokens one window is later than the one before.
    pub stride: usize,
}

impl Windows {
    /// The windows used unless others are asked for: 1024 tokens or the model's context, each half
    /// a window after the one before.
    #[must_use]
    pub fn of_context(context: usize) -> Self {
        let window = context.min(1024);
        Self { window, stride: window.div_ceil(2) }
    }
}

/// Scores `text` in windows of `window` tokens, each `stride` after the one before. A window scores
/// its tokens that no earlier window has. So every token of the text is scored once, and except in
/// the first window it has at least `window − stride` tokens before it. A model trained on texts
/// with a begin token gets it at the start of every window. Without one, the first token of the
/// text has nothing before it and is not scored.
/// `on_window` is told how many windows of how many are done.
///
/// # Errors
/// If the model is an encoder or needs a prompt that says what to continue, a window is longer than
/// its context, or the text has less than two tokens.
pub fn perplexity(
    loaded: &Loaded,
    text: &str,
    windows: Windows,
    on_window: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let Loaded { model, tokenizer, .. } = loaded;
    model.check_causal("scoring a text")?;
    let Windows { window, stride } = windows;
    let before: Vec<i32> = tokenizer.prefix_ids().iter().map(|id| *id as i32).collect();
    let context = model.spec().max_positions;
    let n_before = before.len();
    if window > context || window < n_before + 2 || stride == 0 || stride + n_before.max(1) > window
    {
        return Err(PerplexityError::Windows { window, stride, context });
    }
    let ids = tokenizer.encode(text).map_err(lehr_infer::Error::from)?;
    let first = usize::from(before.is_empty());
    if ids.len() <= first {
        return Err(PerplexityError::TextTooShort { found: ids.len() });
    }
    let n_bytes = text.len() - tokenizer.decode_bytes(&ids[..first]).len();
    let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
    let room = window - n_before;
    let n_windows = 1 + ids.len().saturating_sub(room).div_ceil(stride);
    let mut total = Perplexity { nll: 0.0, n_tokens: 0, n_bytes, n_windows };
    let mut scored = first;
    for at in 0..n_windows {
        let start = at * stride;
        let end = (start + room).min(ids.len());
        let run = [&before[..], &ids[start..end]].concat();
        let n_new = end - scored;
        total.nll += no_grad(|| nll_of_last(loaded, &run, n_new))?;
        total.n_tokens += n_new;
        scored = end;
        on_window(at + 1, n_windows);
    }
    Ok(total)
}

/// −Σ ln p of the last `n` of the tokens `ids`.
fn nll_of_last(loaded: &Loaded, ids: &[i32], n: usize) -> Result<f64> {
    let model = &loaded.model;
    let hidden = model.hidden(&model.tokens(ids, 1)?)?;
    let hidden = hidden.reshape([ids.len(), model.spec().hidden_size])?;
    let mut nll = 0.0;
    let positions: Vec<i32> = (ids.len() - n..ids.len()).map(|at| at as i32).collect();
    for block in positions.chunks(LOGIT_ROWS) {
        let rows: Vec<i32> = block.iter().map(|at| at - 1).collect();
        let rows = hidden.gather_rows(&Tensor::from_ids(&rows, [block.len()])?)?;
        let logits = model.logits(&rows)?.to_host()?;
        let width = logits.shape()[1];
        for (row, at) in logits.data().chunks(width).zip(block) {
            nll += negative_log(row, ids[*at as usize] as usize);
        }
    }
    Ok(nll)
}

/// −ln softmax(logits)[id], the sum in f64.
fn negative_log(logits: &[f32], id: usize) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - top).exp())).sum();
    f64::from(top) + sum.ln() - f64::from(logits[id])
}
