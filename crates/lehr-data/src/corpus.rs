//! Documents that are read anew for every pass, so that memory does not grow with the data.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::source::{Document, Documents, ReadOptions, Reading, documents};
use crate::split::{Border, Places, TextHash};
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

#[derive(Debug, Clone, Copy, PartialEq)]
enum Side {
    Whole,
    Training(Border),
    Validation(Border),
}

impl Side {
    fn has(self, hash: &TextHash) -> bool {
        match self {
            Self::Whole => true,
            Self::Training(border) => !border.holds_out(hash),
            Self::Validation(border) => border.holds_out(hash),
        }
    }
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
        let all = survey(path, options, seed, progress, |hash, bytes| counts.add(hash, bytes))?;
        Ok(Self::new(path, options, seed, Side::Whole, counts.facts(all.cut_files())))
    }

    /// Reads a file or folder and splits it into (training, validation), with about `fraction` of
    /// the documents in validation. The side of a document is that of
    /// [`split_by_text`](crate::split_by_text). The validation side may be empty.
    ///
    /// # Errors
    /// As [`read_documents`](crate::read_documents), or `fraction` is not between 0 and 1.
    pub fn split(
        path: impl AsRef<Path>,
        options: &ReadOptions,
        fraction: f64,
        seed: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Self, Self)> {
        let path = path.as_ref();
        let mut places = Places::new(fraction)?;
        let mut border = Border::at(fraction);
        loop {
            let (mut train, mut validation) = (Counts::default(), Counts::default());
            let all = survey(path, options, seed, progress, |hash, bytes| {
                places.add(hash);
                let side = if border.holds_out(hash) { &mut validation } else { &mut train };
                side.add(hash, bytes);
            })?;
            let found = places.border();
            // The border moves for very small data only, and then the sides are counted again.
            if found == border {
                let cut = all.cut_files();
                let side =
                    |side, counts: Counts| Self::new(path, options, seed, side, counts.facts(cut));
                return Ok((
                    side(Side::Training(border), train),
                    side(Side::Validation(border), validation),
                ));
            }
            let _ = options.reading.take_notes();
            border = found;
        }
    }

    fn new(path: &Path, options: &ReadOptions, seed: u64, side: Side, facts: Facts) -> Self {
        Self { path: path.to_owned(), options: options.clone(), seed, side, facts }
    }

    /// Whether it is one side of a split.
    pub fn is_part(&self) -> bool {
        self.side != Side::Whole
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
                let hash = TextHash::new(&document.text, seed);
                if side.has(&hash) {
                    counts.add(&hash, document.text.len());
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
    fn add(&mut self, hash: &TextHash, bytes: usize) {
        self.documents += 1;
        self.text_bytes += bytes as u64;
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

/// Hands the hash and the size of every document to `each`.
fn survey(
    path: &Path,
    options: &ReadOptions,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
    mut each: impl FnMut(&TextHash, usize),
) -> Result<Documents> {
    let mut all = documents(path, options)?;
    let mut done = Progress::default();
    for document in all.by_ref() {
        let text = document?.text;
        each(&TextHash::new(&text, seed), text.len());
        done.documents += 1;
        done.text_bytes += text.len() as u64;
        if done.documents.is_multiple_of(REPORT_EVERY) {
            progress(done);
        }
    }
    if done.documents == 0 {
        return Err(Error::Empty { path: path.to_owned(), what: "document" });
    }
    Ok(all)
}
