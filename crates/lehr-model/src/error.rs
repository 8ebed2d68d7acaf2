//! Errors of models and their files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error. It names the file or setting, the value found and the value expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Tensor(#[from] lehr_tensor::Error),
    /// A file could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file has invalid contents.
    #[error("reading {}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// Adapters cannot be built or merged.
    #[error("{doing}: {found}")]
    Adapter {
        /// The action that failed.
        doing: &'static str,
        /// What was found.
        found: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// A setting of `config.json` or of a recipe's model has an invalid value.
    #[error("model configuration: {key} is {found}, expected {expected}")]
    Config {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// The expected value.
        expected: String,
    },
    /// The files of a model have a form that lehr does not read.
    #[error("opening the model: {found}, expected {expected}")]
    Unsupported {
        /// What was found.
        found: String,
        /// The expected form.
        expected: String,
        /// What the user can do.
        hint: String,
    },
    /// An encoder was used where a decoder is needed.
    #[error(
        "{doing}: the model is an encoder ({class}), which reads whole texts and predicts no next \
         token"
    )]
    NotCausal {
        /// The action that failed.
        doing: &'static str,
        /// The model's class.
        class: &'static str,
    },
    /// The weights hold no output projection.
    #[error("{doing}: the weights of this {class} hold no language-model head")]
    NoHead {
        /// The action that failed.
        doing: &'static str,
        /// The model's class.
        class: &'static str,
    },
    /// The input does not fit the model.
    #[error("{what} is {found}, but the model takes at most {limit}")]
    TooLong {
        /// The quantity that is too large.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The model's limit.
        limit: usize,
    },
    /// A paged cache is full.
    #[error(
        "{doing}: the cache needs {wanted} more pages, {free} of its {all} pages (of {page_len} \
         tokens) are free"
    )]
    PagesFull {
        /// The action that failed.
        doing: &'static str,
        /// Number of missing pages.
        wanted: usize,
        /// Number of free pages.
        free: usize,
        /// Number of all pages.
        all: usize,
        /// Tokens per page.
        page_len: usize,
    },
    /// A paged cache was used in an unsupported way.
    #[error("{doing}: found {found}, expected {expected}")]
    Paged {
        /// The action that failed.
        doing: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Tokens do not match their layouts, or the layouts belong to another kind of model.
    #[error("laying out tokens: found {found}, expected {expected}")]
    Layout {
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A model with a learned prefix was used where prefixes are not supported.
    #[error("{doing}: the model has learned keys and values before its texts, unsupported here")]
    KvPrefix {
        /// The action that failed.
        doing: &'static str,
    },
    /// A forward pass with a cache would have been recorded for backward.
    #[error(
        "running the model: tokens continue a cache while recording is on, expected no_grad: keys \
         and values in a cache have no gradients"
    )]
    RecordedCache,
    /// A text lacks the tokens that mark its parts.
    #[error("reading the input: {reason}")]
    Prompt {
        /// What is missing.
        reason: String,
        /// What the user can do.
        hint: String,
    },
}

/// Returns a hint for a file that could not be read or written.
fn io_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some space; the old file is untouched"
        }
        ErrorKind::NotFound => "check the path; a model is a folder with config.json and weights",
        _ => "check the path and its permissions",
    }
}

impl Error {
    /// Returns what the user can do, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Format { hint, .. } => Some(hint.clone().unwrap_or_else(|| {
                "the file may be damaged or belong to another model: copy or download it again"
                    .to_owned()
            })),
            Self::Unsupported { hint, .. } => Some(hint.clone()),
            Self::Io { source, .. } => Some(io_hint(source.kind()).to_owned()),
            Self::Adapter { hint, .. } => Some((*hint).to_owned()),
            Self::Config { .. } => {
                Some("correct it in config.json, or in [model] of the recipe".to_owned())
            }
            Self::NotCausal { .. } => Some(
                "use a decoder, such as a GPT-2 or Llama model; an encoder serves `lehr embed` \
                 and, fine-tuned on labelled texts, `lehr classify`"
                    .to_owned(),
            ),
            Self::NoHead { .. } => Some(
                "use it with `lehr embed`, or fine-tune it on labelled texts; for logits, load \
                 weights that include the head"
                    .to_owned(),
            ),
            Self::PagesFull { .. } => Some(
                "generate shorter texts, or give the cache more room (--cache-tokens)".to_owned(),
            ),
            Self::Paged { .. } | Self::RecordedCache | Self::KvPrefix { .. } => None,
            Self::Layout { .. } => {
                Some("lay the tokens out with the model that reads them (Model::layout)".to_owned())
            }
            Self::Prompt { hint, .. } => Some(hint.clone()),
            Self::TooLong { .. } => {
                Some("shorten the prompt, or use a model with a longer context".to_owned())
            }
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.into(), hint: None }
    }

    pub(crate) fn layout(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Layout { found: found.into(), expected: expected.into() }
    }

    pub(crate) fn adapter(
        doing: &'static str,
        found: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self::Adapter { doing, found: found.into(), hint }
    }

    pub(crate) fn config(
        key: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config { key: key.to_owned(), found: found.to_string(), expected: expected.into() }
    }
}
