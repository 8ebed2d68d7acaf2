//! What can go wrong when a model is used.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error names what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Tensor(#[from] lehr_tensor::Error),
    /// The model or its files failed.
    #[error(transparent)]
    Model(#[from] lehr_model::Error),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] lehr_tokenizer::Error),
    /// A file cannot be read.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is no model where one was named.
    #[error("opening model {}: {found}", path.display())]
    NoModel {
        /// What was named.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Tokenizer and model are of different vocabularies.
    #[error(
        "opening model {}: the tokenizer has {tokenizer} ids, the model's vocabulary {model}",
        path.display()
    )]
    Vocabulary {
        /// The model's folder.
        path: PathBuf,
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// A sampling setting has a value it cannot take.
    #[error("sampling: {name} is {value}, expected {expected}")]
    Sampling {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What was expected.
        expected: &'static str,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {found} tokens, the model's context is {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// The context.
        limit: usize,
    },
    /// Windows over a text that cannot be.
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
    /// One of several prompts cannot be continued.
    #[error("prompt {number} of {n}: {source}")]
    InPrompt {
        /// Which one, counted from 1.
        number: usize,
        /// How many there are.
        n: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A batch without room for texts.
    #[error("generating many texts: at most 0 at once, expected at least 1")]
    EmptyBatch,
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A folder makes vectors of texts in a way that is not known.
    #[error("reading how texts become vectors, {}: {reason}", path.display())]
    Pooling {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// A golden file lacks what it should hold.
    #[error("verifying against {}: {reason}", path.display())]
    Golden {
        /// The golden file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is something where a model was to be written.
    #[error("converting to {}: there is something already", path.display())]
    TargetExists {
        /// The place.
        path: PathBuf,
    },
    /// A converted model does not compute what its source does.
    #[error(
        "converting a model: the copy {} differs from the source: relative error {:.3e}, \
         expected at most {:.0e}{}",
        path.display(), proof.error, proof.limit,
        if proof.same_ids == Some(false) { ", and its tokenizer gives other ids" } else { "" }
    )]
    Unproven {
        /// What was written.
        path: PathBuf,
        /// How it differs.
        proof: Box<crate::convert::Proof>,
    },
}

impl Error {
    /// What the user can do about it, if the error knows.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Io { .. } => Some("check that the file is there and may be read".to_owned()),
            Self::NoModel { .. } => Some(
                "give a run directory (runs/…), one of its checkpoints, a Hugging Face folder or a \
                 GGUF file"
                    .to_owned(),
            ),
            Self::Vocabulary { .. } => {
                Some("tokenizer.json and config.json must be of one model".to_owned())
            }
            Self::TargetExists { .. } => {
                Some("remove it first, or give another place with --to".to_owned())
            }
            Self::Unproven { .. } => Some(
                "the copy is left where it was written, to be looked at; choose a format with \
                 more bits, or report the model's family and format"
                    .to_owned(),
            ),
            Self::Windows { .. } => Some("leave --window and --stride out".to_owned()),
            Self::TextTooShort { .. } => Some("give a longer text".to_owned()),
            Self::PromptTooLong { .. } => Some("shorten the prompt".to_owned()),
            Self::InPrompt { source, .. } => source.hint(),
            Self::EmptyBatch => Some("give --batch 1 or more".to_owned()),
            Self::EmptyPrompt => Some("give some text to continue".to_owned()),
            Self::Sampling { name, expected, .. } => {
                Some(format!("give --{} {expected}", name.replace('_', "-")))
            }
            Self::Pooling { .. } => Some(
                "use a model whose vectors are pooled over its hidden states, such as \
                 all-MiniLM-L6-v2"
                    .to_owned(),
            ),
            Self::Golden { .. } => Some(
                "the file must hold what the reference computed with this very model".to_owned(),
            ),
        }
    }
}
