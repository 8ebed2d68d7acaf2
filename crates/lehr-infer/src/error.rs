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
    #[error("the prompt has {found} tokens, the context is {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// The context.
        limit: usize,
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
    /// A prompt has a token that the model does not know.
    #[error("the prompt has token {id}, expected ids below {vocab_size}")]
    TokenId {
        /// The token.
        id: u32,
        /// The model's ids.
        vocab_size: usize,
    },
    /// Logits from which nothing can be chosen.
    #[error(
        "choosing the next token: {n_nan} of {n} logits are NaN and the largest is {top}, \
         expected numbers"
    )]
    Logits {
        /// Those that are no numbers.
        n_nan: usize,
        /// The largest of the others.
        top: f32,
        /// All of them.
        n: usize,
    },
    /// Stop texts where there is no text.
    #[error("generating tokens: there are stop texts, but the engine makes no text")]
    StopWithoutText,
    /// An engine for a single request has others.
    #[error("generating a text: the engine works on {n} other requests, expected none")]
    Busy {
        /// Those there are.
        n: usize,
    },
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
        "converting a model: the copy {} differs from the source by more than its format explains: \
         {}",
        path.display(), proof.faults().join("; ")
    )]
    Unproven {
        /// What was written.
        path: PathBuf,
        /// How it differs.
        proof: Box<crate::proof::Proof>,
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
                "the copy stays where it was written, for inspection; choose a format with more \
                 bits, or report the model's family and format"
                    .to_owned(),
            ),
            Self::PromptTooLong { .. } => {
                Some("shorten the prompt, or raise --context".to_owned())
            }
            Self::InPrompt { source, .. } => source.hint(),
            Self::EmptyBatch => Some("give --batch 1 or more".to_owned()),
            Self::EmptyPrompt => Some("give some text to continue".to_owned()),
            Self::TokenId { .. } => Some("use the tokenizer of this model".to_owned()),
            Self::Logits { .. } => Some(
                "the weights are damaged, or the numbers overflow: look at them with lehr verify, \
                 or use --dtype f32"
                    .to_owned(),
            ),
            Self::StopWithoutText => Some("give the engine a tokenizer, or stop ids".to_owned()),
            Self::Busy { .. } => Some("submit the request and call step instead".to_owned()),
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
