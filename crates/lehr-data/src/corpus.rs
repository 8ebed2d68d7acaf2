//! Documents that are read anew for every pass, so that memory does not grow with the data.

mod held_out;
mod sides;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use held_out::{Amount, HeldOut, HeldOutSource};
use sha2::{Digest, Sha256};
use sides::SplitRule;
pub use sides::TextSplit;

use crate::source::{Document, Documents, ReadOptions, Reading, TextPlace, documents};
use crate::split::{Place, TextHash};
use crate::tokenize::Progress;
use crate::{Error, Result};

/// Documents between two calls of a progress function.
const REPORT_EVERY: u64 = 64;

/// One side of a split, or a whole data set: which documents it has, but not their texts.
#[derive(Debug, Clone)]
pub struct Corpus {
    path: PathBuf,
    options: ReadOptions,
    seed: u64,
    side: Side,
    facts: Facts,
}

/// Number and size of documents, and a hash of their texts in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    documents: u64,
    text_bytes: u64,
    hash: String,
    cut_files: u64,
}

#[derive(Debug, Clone)]
enum Side {
    Whole,
    Part(Place, Arc<SplitRule>),
}

impl Side {
    fn has(&self, document: &Seen<'_>) -> bool {
        match self {
            Self::Whole => true,
            Self::Part(place, rule) => rule.place(document).is_some_and(|of| of == *place),
        }
    }
}

/// A document in a pass over the data, its text aside.
#[derive(Clone, Copy)]
struct Seen<'a> {
    hash: TextHash,
    bytes: u64,
    /// Place in its text file; `None` for a record.
    place: Option<TextPlace>,
    file_name: &'a str,
}

impl Corpus {
    /// Reads a file or folder once and returns all its documents.
    ///
    /// # Errors
    /// As [`read_documents`](crate::read_documents).
    pub fn whole(
        path: impl AsRef<Path>,
        options: &ReadOptions,
        seed: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let path = path.as_ref();
        let mut counts = Counts::default();
        let all = survey(path, options, seed, progress, |seen| counts.add(seen.hash, seen.bytes))?;
        Ok(Self::new(path, options, seed, Side::Whole, counts.facts(all.cut_files())))
    }

    fn new(path: &Path, options: &ReadOptions, seed: u64, side: Side, facts: Facts) -> Self {
        Self { path: path.to_owned(), options: options.clone(), seed, side, facts }
    }

    /// Whether it is one side of a split.
    pub fn is_part(&self) -> bool {
        !matches!(self.side, Side::Whole)
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.facts.documents
    }

    /// UTF-8 bytes of the documents.
    pub fn text_bytes(&self) -> u64 {
        self.facts.text_bytes
    }

    /// Number of text files that were cut into more than one document. Their documents may be on
    /// both sides of a split.
    pub fn cut_files(&self) -> u64 {
        self.facts.cut_files
    }

    /// A hash of the texts in order, in hexadecimal. Equal documents give equal hashes, wherever
    /// they lie and on whichever side of a split.
    pub fn hash(&self) -> &str {
        &self.facts.hash
    }

    /// Reads the documents again, one at a time. Ends with an error if they are not those that
    /// were counted.
    ///
    /// # Errors
    /// The path does not exist any more. Each document may give an error.
    pub fn read(&self) -> Result<impl Iterator<Item = Result<Document>> + Send + use<>> {
        // What there is to say of the data was said in the first pass.
        let ReadOptions { reading: Reading { part, skip_bad, .. }, .. } = self.options;
        let reading = Reading::new(part, skip_bad);
        let mut all = documents(&self.path, &ReadOptions { reading, ..self.options.clone() })?;
        let Self { path, seed, side, facts, .. } = self.clone();
        let (mut counts, mut done) = (Counts::default(), false);
        Ok(std::iter::from_fn(move || {
            while !done {
                let Some(document) = all.next() else {
                    done = true;
                    let found = counts.take().facts(facts.cut_files);
                    let changed = || Error::DataChanged { path: path.clone() };
                    return (found != facts).then(|| Err(changed()));
                };
                let document = match document {
                    Ok(document) => document,
                    Err(error) => {
                        done = true;
                        return Some(Err(error));
                    }
                };
                let seen = Seen::new(&document, seed, &all);
                if side.has(&seen) {
                    counts.add(seen.hash, seen.bytes);
                    return Some(Ok(document));
                }
            }
            None
        }))
    }

    /// Reads a sample of about `bytes` bytes of the documents, or all if they have fewer. Whether
    /// a document is drawn depends on its text, the seed and the share that is drawn.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn sample(
        &self,
        bytes: u64,
    ) -> Result<impl Iterator<Item = Result<Document>> + Send + use<>> {
        let share = bytes as f64 / self.text_bytes().max(1) as f64;
        let seed = self.seed;
        let drawn = move |document: &Result<Document>| match document {
            Ok(_) if share >= 1.0 => true,
            Ok(document) => TextHash::new(&document.text, seed).sample_place() < share,
            Err(_) => true,
        };
        Ok(self.read()?.filter(drawn))
    }
}

/// Counts of a pass that is under way.
#[derive(Default)]
struct Counts {
    documents: u64,
    text_bytes: u64,
    hasher: Sha256,
}

impl Counts {
    fn add(&mut self, hash: TextHash, bytes: u64) {
        self.documents += 1;
        self.text_bytes += bytes;
        self.hasher.update(hash.bytes());
    }

    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn facts(self, cut_files: u64) -> Facts {
        let Self { documents, text_bytes, hasher } = self;
        let hash = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Facts { documents, text_bytes, hash, cut_files }
    }
}

impl<'a> Seen<'a> {
    fn new(document: &Document, seed: u64, all: &'a Documents) -> Self {
        Self {
            hash: TextHash::new(&document.text, seed),
            bytes: document.text.len() as u64,
            place: all.place(),
            file_name: all.file_name(),
        }
    }
}

/// Hands every document to `each`, its text aside.
fn survey(
    path: &Path,
    options: &ReadOptions,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
    mut each: impl FnMut(&Seen<'_>),
) -> Result<Documents> {
    let mut all = documents(path, options)?;
    let mut done = Progress::default();
    while let Some(document) = all.next() {
        let seen = Seen::new(&document?, seed, &all);
        each(&seen);
        done.documents += 1;
        done.text_bytes += seen.bytes;
        if done.documents.is_multiple_of(REPORT_EVERY) {
            progress(done);
        }
    }
    if done.documents == 0 {
        return Err(Error::Empty { path: path.to_owned(), what: "document" });
    }
    Ok(all)
}
