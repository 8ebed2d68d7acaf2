//! Errors between files and batches, and their remedies.

use std::path::PathBuf;

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of reading, splitting, tokenising or loading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused a file operation.
    #[error("{action} {path:?}: {source}")]
    Io {
        /// What was being done, as in "reading".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The ending of a file name does not say how to read it.
    #[error("reading {path:?}: its ending is {found}, expected {expected}")]
    UnknownExtension {
        /// The file.
        path: PathBuf,
        /// The ending found.
        found: String,
        /// The endings that can be read here.
        expected: &'static str,
    },
    /// A file is not UTF-8.
    #[error(
        "reading {path:?}: line {line} is not UTF-8, the first bad byte is at offset {offset}; \
         it looks like {encoding}"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Offset in the (decompressed) file, from 0.
        offset: u64,
        /// The encoding it may have.
        encoding: &'static str,
    },
    /// A file has units of two or four bytes.
    #[error("reading {path:?}: the text is {encoding}, expected UTF-8")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The encoding found.
        encoding: &'static str,
    },
    /// A compressed file cannot be decompressed to its end.
    #[error("decompressing {path:?}: {reason}")]
    Compressed {
        /// The file.
        path: PathBuf,
        /// What the decompressor found.
        reason: String,
    },
    /// A record is not well-formed JSON or CSV.
    #[error("reading {path:?}, {place}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Place of the record: "line 7" or "item 7".
        place: String,
        /// What the parser found.
        reason: String,
    },
    /// A file cannot be read beyond a place, because no later record can be found.
    #[error("reading {path:?}, {place}: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Place from which the file cannot be read: "line 7" or "item 7, line 9".
        place: String,
        /// What the parser found.
        reason: String,
    },
    /// Several records are bad.
    #[error("reading the data: {count} records are bad:{listing}")]
    BadRecords {
        /// Number of bad records.
        count: u64,
        /// A line for each of the first ones, and the number of the others.
        listing: String,
    },
    /// A record lacks a field.
    #[error("reading {path:?}, {place}: no field {field:?}, found {}", quoted(.found))]
    MissingField {
        /// The file.
        path: PathBuf,
        /// Place of the record: "line 7" or "item 7".
        place: String,
        /// The expected field, or several alternatives.
        field: String,
        /// The fields of the record.
        found: Vec<String>,
    },
    /// A field has another type than expected.
    #[error("reading {path:?}, {place}: field {field:?} is {found}, expected {expected}")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// Place of the record: "line 7" or "item 7".
        place: String,
        /// The field.
        field: String,
        /// The type found.
        found: &'static str,
        /// The type expected.
        expected: &'static str,
    },
    /// A record is not a conversation.
    #[error("reading {path:?}, {place}: {source}")]
    Conversation {
        /// The file.
        path: PathBuf,
        /// Place of the record: "line 7" or "item 7".
        place: String,
        /// The message that does not fit.
        source: lehr_tokenizer::Error,
    },
    /// The fields of a dataset fit no known kind.
    #[error("guessing the kind of dataset of {path:?}: found the fields {}", quoted(.found))]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// The fields of its first record.
        found: Vec<String>,
    },
    /// The files of a folder are of different kinds.
    #[error(
        "guessing the kind of dataset of {path:?}: {first:?} holds {first_kind}, {other:?} holds \
         {other_kind}"
    )]
    MixedKinds {
        /// The folder.
        path: PathBuf,
        /// A file.
        first: String,
        /// Its kind, as in "conversations".
        first_kind: &'static str,
        /// A file of another kind.
        other: String,
        /// Its kind.
        other_kind: &'static str,
    },
    /// A folder has only validation and test splits.
    #[error(
        "reading {path:?}: found only a validation or test split ({}), expected training data",
        .found.join(", ")
    )]
    NoTraining {
        /// The folder.
        path: PathBuf,
        /// The files found.
        found: Vec<String>,
    },
    /// No file of a folder can be read.
    #[error(
        "reading {path:?}: found only files that cannot be read ({}), expected files that end in \
         {expected}",
        .found.join(", ")
    )]
    NothingReadable {
        /// The folder.
        path: PathBuf,
        /// The files found.
        found: Vec<String>,
        /// The endings that can be read.
        expected: &'static str,
    },
    /// There is nothing to read.
    #[error("reading {path:?}: found no {what}, expected at least one")]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// "document", "labelled text" or "conversation".
        what: &'static str,
    },
    /// The validation fraction is not between 0 and 1.
    #[error("splitting off validation data: the fraction is {fraction}, expected between 0 and 1")]
    Fraction {
        /// The requested fraction.
        fraction: f64,
    },
    /// Data is not what it was in an earlier pass over it.
    #[error("reading {path:?} again: its documents are not those of the first reading")]
    DataChanged {
        /// The file or folder.
        path: PathBuf,
    },
    /// There are no documents to tokenise.
    #[error("tokenising: there are no documents, expected at least one")]
    NoDocuments,
    /// A token shard is damaged.
    #[error("opening the token shard {path:?}: {reason}")]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A token shard was made with another tokenizer.
    #[error(
        "opening the token shard {path:?}: it was made with tokenizer {found:.12}, this one is \
         {expected:.12}"
    )]
    OtherTokenizer {
        /// The shard.
        path: PathBuf,
        /// Hash in the shard.
        found: String,
        /// Hash of the given tokenizer.
        expected: String,
    },
    /// A document has more tokens than a loader counts.
    #[error("loading documents: one has {tokens} tokens, expected less than 2^32")]
    LongDocument {
        /// Its number of tokens.
        tokens: u64,
    },
    /// The options of a loader contradict themselves.
    #[error("making a loader: {0}")]
    Options(String),
    /// A requested batch lies beyond the end of sequential data.
    #[error("loading batch {index}: there are {batches} batches, counted from 0")]
    NoSuchBatch {
        /// Index of the requested batch.
        index: u64,
        /// Number of batches.
        batches: u64,
    },
    /// No example has a supervised token.
    #[error(
        "making a loader: none of {examples} {what} has a supervised token within {len} tokens"
    )]
    NothingToLearn {
        /// Number of examples.
        examples: usize,
        /// "conversations" or "labelled texts".
        what: &'static str,
        /// The length of a row.
        len: usize,
    },
    /// The parts of a batch contradict one another.
    #[error("checking a batch: {reason}")]
    Batch {
        /// What is wrong.
        reason: String,
    },
    /// The tokens of a segment cannot be placed.
    #[error("placing the tokens of a segment: {reason}")]
    Layout {
        /// What is wrong.
        reason: String,
    },
    /// A label is none of the model's.
    #[error("labelled text {index}: the label is {label:?}, expected one of {}", quoted(.known))]
    UnknownLabel {
        /// Index of the text, from 0.
        index: usize,
        /// The label found.
        label: String,
        /// The labels of the model.
        known: Vec<String>,
    },
    /// The type of an entity is none of the model's.
    #[error("tagging words: the data has entities of type {found:?}, expected {}", quoted(.known))]
    UnknownEntity {
        /// The type found.
        found: String,
        /// The types of the model.
        known: Vec<String>,
    },
    /// No text has an entity.
    #[error("collecting the types of entities: no text has an entity")]
    NoEntities,
    /// The labels of a model are no tags of words.
    #[error("reading the labels: found {found:?}, expected O, and B-TYPE and I-TYPE of each type")]
    NotTags {
        /// The label found.
        found: String,
    },
    /// There are too few labels to tell apart.
    #[error(
        "collecting the labels: found {}, expected at least two different ones",
        quoted(.found)
    )]
    TooFewLabels {
        /// The labels found.
        found: Vec<String>,
    },
    /// A set of labels has one of them twice.
    #[error("collecting the labels: {label:?} is the name of class {first} and of class {second}")]
    RepeatedLabel {
        /// The label.
        label: String,
        /// The first class with this name.
        first: usize,
        /// The second class with this name.
        second: usize,
    },
    /// A row has no room for the tokens around a text.
    #[error(
        "making a loader of {what}: rows have {seq_len} tokens, expected at least {least}, the \
         number of tokens that the tokenizer puts around a text"
    )]
    RowTooShort {
        /// "labelled texts".
        what: &'static str,
        /// The length of a row.
        seq_len: usize,
        /// The least length that can be used.
        least: usize,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] lehr_tokenizer::Error),
}

impl Error {
    /// Returns a remedy for labels that do not fit.
    fn hint_for_labels(&self) -> &'static str {
        match self {
            Self::TooFewLabels { .. } => "check which field holds the label",
            Self::NoEntities => "check that the last column, or the field of tags, has entities",
            Self::NotTags { .. } => "use a model for named entities, or start a new head",
            _ => "they are those of the model's head: correct the data, or start a new head",
        }
    }

    /// Returns a remedy for the user, if one is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io { action: "reading", .. } => "check that the path exists and may be read",
            Self::Io { .. } => "check that the folder exists and that the disk is not full",
            Self::UnknownExtension { .. } => "rename the file to match its content",
            Self::NotUtf8 { .. } => {
                "convert the file, as with: iconv -f GB18030 -t UTF-8 IN > OUT (or -f UTF-16, \
                 -f LATIN1)"
            }
            Self::Compressed { .. } => {
                "the file may be truncated: test it with gzip -t or zstd -t, or fetch it again"
            }
            Self::Encoding { encoding: "UTF-32", .. } => {
                "convert the file, as with: iconv -f UTF-32 -t UTF-8 IN > OUT"
            }
            Self::Encoding { .. } => "convert the file, as with: iconv -f UTF-16 -t UTF-8 IN > OUT",
            Self::Malformed { .. } => {
                "correct or remove the record; --skip-bad leaves out bad records"
            }
            Self::Broken { .. } => "correct the file there: what follows cannot be read",
            Self::BadRecords { .. } => {
                "correct or remove the records; --skip-bad leaves them out and counts them"
            }
            Self::MixedKinds { .. } => {
                "move the files into folders of their own, or choose with --kind"
            }
            Self::NothingReadable { .. } => {
                "convert them, as with pandas: read_parquet(...).to_json(..., lines=True)"
            }
            Self::NoTraining { .. } => "name a file itself to train on it",
            Self::MissingField { found, .. } if found.is_empty() => "the record has no fields",
            Self::MissingField { .. } => "name the field to use, or rename it in the file",
            Self::WrongType { .. } => "correct the record, or name another field",
            Self::Conversation { source, .. } => {
                let skip = "--skip-bad leaves out such records";
                let hint = source.hint();
                return Some(hint.map_or(skip.to_owned(), |hint| format!("{hint}; {skip}")));
            }
            Self::UnknownKind { .. } => {
                "a dataset has text; text and label; tokens and tags; text and entities; \
                 messages; prompt and completion; or instruction and output"
            }
            Self::Empty { .. } => "check the path, the endings of the files and the text field",
            Self::Fraction { .. } => "0.05 keeps every twentieth document for validation",
            Self::DataChanged { .. } => "start again when nothing writes to the data any more",
            Self::NoDocuments => "check the path of the text and how it is split",
            Self::Shard { .. } => "delete the shard's folder; lehr makes it again from the text",
            Self::OtherTokenizer { .. } => {
                "tokenise the text again with this tokenizer, or use the tokenizer of the shard"
            }
            Self::LongDocument { .. } => "give the text in several documents",
            Self::Options(_) => "check batch size, sequence length, rank and world size",
            Self::NoSuchBatch { .. } => "ask for batches below batches_per_epoch",
            Self::NothingToLearn { .. } => {
                "raise the sequence length, or check that answers are not empty"
            }
            Self::UnknownLabel { .. }
            | Self::UnknownEntity { .. }
            | Self::NoEntities
            | Self::NotTags { .. }
            | Self::TooFewLabels { .. } => self.hint_for_labels(),
            Self::Batch { .. } => "correct the loader, or the rollout, that made the batch",
            Self::Layout { .. } => "check that the text has the tokens that the model's kind needs",
            Self::RepeatedLabel { .. } => "correct id2label in the model's config.json",
            Self::RowTooShort { .. } => "raise train.seq_len",
            Self::Tokenizer(source) => return source.hint(),
        };
        Some(hint.to_owned())
    }
}

impl Error {
    /// Whether the error is about one record, after which others can be read.
    pub(crate) fn is_of_record(&self) -> bool {
        matches!(
            self,
            Self::Malformed { .. }
                | Self::MissingField { .. }
                | Self::WrongType { .. }
                | Self::Conversation { .. }
        )
    }

    /// Whether the error is about the bytes of one line.
    pub(crate) fn is_of_line(&self) -> bool {
        matches!(self, Self::NotUtf8 { .. })
    }
}

/// A line for each of the errors, and the number of those of `count` that are not among them.
pub(crate) fn listed(errors: &[Error], count: u64) -> String {
    let mut lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
    let more = count.saturating_sub(errors.len() as u64);
    if more > 0 {
        lines.push_str(&format!("\n  and {more} more"));
    }
    lines
}

fn quoted(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    }
}
