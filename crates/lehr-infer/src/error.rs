//! Errors of inference.

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
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// There is no model where one was named.
    #[error("opening model {}: {found}", path.display())]
    NoModel {
        /// The named file or folder.
        path: PathBuf,
        /// What was found there.
        found: String,
    },
    /// An adapter was named where its base belongs.
    #[error(
        "opening model {}: it is an adapter, expected the model it was trained on",
        path.display()
    )]
    AdapterAlone {
        /// Its folder.
        path: PathBuf,
    },
    /// Tokenizer and model have different vocabularies.
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
        /// Its number, from 1.
        number: usize,
        /// Number of prompts.
        n: usize,
        /// The error of this prompt.
        source: Box<Self>,
    },
    /// A batch size of 0.
    #[error("generating many texts: at most 0 at once, expected at least 1")]
    EmptyBatch,
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt has an id outside the model's vocabulary.
    #[error("the text has {token:?}, which is token {id}, expected ids below {vocab_size}")]
    TokenId {
        /// Its id.
        id: u32,
        /// Its text, empty if there is no tokenizer.
        token: String,
        /// Number of ids of the model.
        vocab_size: usize,
    },
    /// Logits without a softmax.
    #[error(
        "choosing the next token: {n_nan} of {n} logits are NaN and the largest is {top}, \
         expected numbers"
    )]
    Logits {
        /// Number of NaNs.
        n_nan: usize,
        /// The largest other logit.
        top: f32,
        /// Number of logits.
        n: usize,
    },
    /// Stop texts for an engine without a tokenizer.
    #[error("generating tokens: there are stop texts, but the engine makes no text")]
    StopWithoutText,
    /// An engine that must run a single request has others.
    #[error("generating a text: the engine works on {n} other requests, expected none")]
    Busy {
        /// Number of other requests.
        n: usize,
    },
    /// A folder describes a pooling that is not supported.
    #[error("reading the pooling of text vectors, {}: {reason}", path.display())]
    Pooling {
        /// The file that describes it.
        path: PathBuf,
        /// Why it is not supported.
        reason: String,
    },
    /// A golden file does not match the model, or lacks an item.
    #[error("verifying against {}: {reason}", path.display())]
    Golden {
        /// The golden file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The target of a conversion exists.
    #[error("converting to {}: the target exists", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// A model with a head that GGUF cannot store.
    #[error(
        "converting {} to GGUF: it is a {found}, expected a language model or an encoder without \
         the head of a task",
        path.display()
    )]
    NoPlace {
        /// The source.
        path: PathBuf,
        /// Its class.
        found: String,
    },
    /// A converted model does not compute what its source does.
    #[error(
        "converting a model to {}: the copy differs from the source: {}",
        path.display(), faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unproven {
        /// The target.
        path: PathBuf,
        /// The differences.
        faults: Vec<crate::proof::Fault>,
    },
}

impl Error {
    /// Returns advice for the user, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Io { .. } => Some("check that the file exists and is readable".to_owned()),
            Self::NoModel { .. } => Some(
                "give a run directory (runs/…), one of its checkpoints, a Hugging Face folder or a \
                 GGUF file"
                    .to_owned(),
            ),
            Self::AdapterAlone { path } => {
                let path = path.display();
                Some(format!("name the model, and the adapter with --adapter {path}"))
            }
            Self::Vocabulary { .. } => {
                Some("tokenizer.json and config.json must belong to one model".to_owned())
            }
            Self::TargetExists { .. } => {
                Some("remove it first, or name another target with --to".to_owned())
            }
            Self::NoPlace { .. } => Some(
                "convert it to a folder, which keeps the head and its labels".to_owned(),
            ),
            Self::Unproven { faults, .. } => faults.first().map(|fault| {
                format!("nothing was written; {}", fault.part.hint())
            }),
            Self::PromptTooLong { .. } => {
                Some("shorten the prompt, or raise --context".to_owned())
            }
            Self::InPrompt { source, .. } => source.hint(),
            Self::EmptyBatch => Some("give --batch 1 or more".to_owned()),
            Self::EmptyPrompt => Some("give some text to continue".to_owned()),
            Self::TokenId { .. } => {
                Some("use the tokenizer of this model, or leave the token out".to_owned())
            }
            Self::Logits { .. } => Some(
                "the weights are damaged, or the computation overflows: check the model with lehr \
                 verify, or use --dtype f32"
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
                "use the file that the reference computed with this model".to_owned(),
            ),
        }
    }
}
