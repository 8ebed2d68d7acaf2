//! Errors of tokenizers, and their remedies.

use std::path::{Path, PathBuf};

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of training, loading, encoding or rendering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tokenizer file could not be read or written.
    #[error("{action} the tokenizer file {path:?}: {source}")]
    File {
        /// What was being done: "reading" or "writing".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The text is not a `tokenizer.json`.
    #[error(
        "reading tokenizer.json{}: expected a Hugging Face tokenizer, found: {reason}",
        at(.path)
    )]
    Json {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What the parser found.
        reason: String,
    },
    /// The tokenizer decodes in a way this crate does not know.
    #[error(
        "reading tokenizer.json: the decoder is {found}, expected ByteLevel, Metaspace, Replace, \
         ByteFallback, Fuse, Strip, WordPiece, BPEDecoder or a Sequence of these"
    )]
    Decoder {
        /// The decoder types found.
        found: String,
    },
    /// A vocabulary of another kind cannot be read.
    #[error("reading {}{}: {reason}", article(.kind), at(.path))]
    Import {
        /// The kind of file lehr expected.
        kind: &'static str,
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A vocabulary cannot be written as another kind.
    #[error("writing the tokenizer as a GGUF vocabulary: {reason}")]
    Export {
        /// What was found, and what was expected.
        reason: String,
    },
    /// A folder has no tokenizer.
    #[error("looking for a tokenizer in {folder:?}: expected one of {}", .wanted.join(", "))]
    NoTokenizer {
        /// The folder.
        folder: PathBuf,
        /// Any of these would do.
        wanted: Vec<String>,
    },
    /// The encoder refused a text.
    #[error("encoding text that starts with {start:?}: {reason}")]
    Encode {
        /// The first characters of the text.
        start: String,
        /// What the encoder found.
        reason: String,
    },
    /// There was no text to train on.
    #[error("training a tokenizer: the corpus is empty, expected at least one character of text")]
    EmptyCorpus,
    /// The vocabulary cannot hold the bytes and the special tokens.
    #[error(
        "training a tokenizer: vocab_size is {vocab_size}, expected at least {minimum} \
         (256 bytes + {special} special tokens)"
    )]
    VocabularyTooSmall {
        /// The requested size.
        vocab_size: usize,
        /// The smallest size that works.
        minimum: usize,
        /// Number of requested special tokens.
        special: usize,
    },
    /// A special token cannot be used.
    #[error("training a tokenizer: special token {token:?} {reason}")]
    SpecialToken {
        /// The token.
        token: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// Training failed inside the BPE trainer.
    #[error("training a tokenizer: {0}")]
    Train(String),
    /// A tokenizer lacks a special token that is needed.
    #[error("{action}: the tokenizer has no special token {}", .wanted.join(" or "))]
    MissingSpecial {
        /// What was being done.
        action: &'static str,
        /// Any of these would do.
        wanted: Vec<String>,
    },
    /// A chat template cannot be read, refuses a conversation, or does not show which tokens are
    /// supervised.
    #[error("{action} the chat template {name:?}: {reason}")]
    Template {
        /// What was being done.
        action: &'static str,
        /// The template's name.
        name: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// No chat template has this name, or none fits the tokenizer.
    #[error("looking for a chat template: {found}, expected one of {}", .names.join(", "))]
    NoTemplate {
        /// What was found.
        found: String,
        /// The known names.
        names: Vec<&'static str>,
    },
    /// A list of messages is not a conversation.
    #[error("rendering a conversation: message {index}: {reason}")]
    Conversation {
        /// Index of the message, from 0.
        index: usize,
        /// What was found, and what was expected.
        reason: String,
    },
}

impl Error {
    /// Adds the file `path` to an error that names none.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Json { path: None, reason } => Self::Json { path: Some(file.into()), reason },
            Self::Import { kind, path: None, reason } => {
                Self::Import { kind, path: Some(file.into()), reason }
            }
            other => other,
        }
    }

    /// Returns a remedy for the user, if one is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File { action: "reading", .. } => {
                "give the path of a tokenizer.json, or train one first"
            }
            Self::File { .. } => "check that the folder exists and that the disk is not full",
            Self::Json { .. } => {
                "the file may be truncated or from another program: use the tokenizer.json of a \
                 Hugging Face folder or one trained here"
            }
            Self::Decoder { .. } => {
                "this tokenizer's ids cannot be turned back into exact bytes; use a model with a \
                 byte-level, SentencePiece or WordPiece tokenizer"
            }
            Self::Import { .. } => {
                "the file may be truncated or of another kind: lehr reads tokenizer.json, \
                 SentencePiece models, tiktoken and tekken files, vocab.json with merges.txt, \
                 BERT's vocab.txt, and the vocabularies of GGUF models"
            }
            Self::Export { .. } => "convert to a folder instead: it keeps tokenizer.json as it is",
            Self::NoTokenizer { .. } => "copy the tokenizer's files beside the model",
            Self::Encode { .. } => {
                "the vocabulary may lack an unknown token; a byte-level tokenizer encodes any text"
            }
            Self::EmptyCorpus => "check the path of the training text and its text field",
            Self::VocabularyTooSmall { .. } => "raise vocab_size; 4096 suits a few megabytes",
            Self::SpecialToken { .. } => "choose a name with punctuation inside, as <|name|>",
            Self::Train(_) => return None,
            Self::MissingSpecial { wanted, .. } => {
                return Some(format!(
                    "use a tokenizer trained with {} among its special tokens",
                    wanted.join(" or ")
                ));
            }
            Self::Template { action: "reading", .. } => {
                "give a Jinja template as in Hugging Face folders"
            }
            Self::Template { action: "finding what is to be learnt with", .. } => {
                "write {% generation %} before and {% endgeneration %} after an answer, its end of \
                 turn included, in a copy of the template; put the copy beside the model as \
                 chat_template.jinja"
            }
            Self::Template { action: "setting variables of", .. } => {
                "leave it out of the variables"
            }
            Self::Template { .. } => "name another template, or give a file that ends in .jinja",
            Self::NoTemplate { .. } => {
                "name the template the model was trained with, or give its file with the ending \
                 .jinja"
            }
            Self::Conversation { .. } => {
                "a conversation is an optional system message first, then user and assistant in \
                 turn, beginning with user; tool results follow the assistant that called them"
            }
        };
        Some(hint.to_owned())
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(|c: char| "AEIOUaeiou".contains(c));
    format!("{} {kind} file", if vowel { "an" } else { "a" })
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" {path:?}")).unwrap_or_default()
}
