//! The split of a corpus: passes over its files, which are never held in memory.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::held_out::Tally;
use super::{Corpus, Counts, HeldOut, Seen, Side, survey};
use crate::Result;
use crate::source::{Documents, ReadOptions};
use crate::split::{
    Border, FileSide, Place, Places, SplitBy, SplitOptions, TextFile, TextHash, sides_of_files,
};
use crate::tokenize::Progress;

/// The two sides of a split, and what was held out.
#[derive(Debug, Clone)]
pub struct TextSplit {
    /// Documents to train on.
    pub training: Corpus,
    /// Held-out documents; there may be none.
    pub validation: Corpus,
    /// What was held out and dropped.
    pub held_out: HeldOut,
}

/// The side of every document.
#[derive(Debug)]
pub(super) struct SplitRule {
    /// The border of records, and of documents that are split one by one.
    border: Border,
    /// The sides of text files.
    files: Vec<FileSide>,
    by: SplitBy,
    /// Hashes of held-out and dropped documents. A copy of one of them is not trained on.
    held_out: HashSet<u128>,
}

impl SplitRule {
    /// Returns the side of a document; `None` for a copy of a held-out or dropped document on the
    /// training side.
    pub(super) fn place(&self, document: &Seen<'_>) -> Option<Place> {
        let place = match document.place.filter(|_| self.by == SplitBy::Source) {
            Some(place) => {
                let file = usize::try_from(place.file).ok().and_then(|file| self.files.get(file));
                // Files that were not there before are found when the documents are counted.
                file.map_or(Place::Training, |file| file.place(place.document))
            }
            None if self.border.holds_out(&document.hash) => Place::HeldOut,
            None => Place::Training,
        };
        let is_copy = place == Place::Training && self.held_out.contains(&document.hash.short());
        (!is_copy).then_some(place)
    }

    fn is_done(&self, border: Border) -> bool {
        self.border == border && self.files.is_empty()
    }
}

impl Corpus {
    /// Reads a file or folder and splits it. Records are split by their text, as
    /// [`split_by_text`](crate::split_by_text) does, and text files as [`SplitBy`] says.
    ///
    /// Texts are read up to three times: to count the documents of text files, to find the held-out
    /// ones, and to find copies of these among the others. Memory holds a few numbers for each text
    /// file and 16 bytes for each held-out document of data with text files.
    ///
    /// # Errors
    /// As [`read_documents`](crate::read_documents), or the fraction is not between 0 and 1.
    pub fn split(
        path: impl AsRef<Path>,
        options: &ReadOptions,
        split: SplitOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<TextSplit> {
        let path = path.as_ref();
        let SplitOptions { fraction, seed, by } = split;
        let mut places = Places::new(fraction)?;
        let mut files = Files::default();
        let border = Border::at(fraction);
        let mut rule = SplitRule { border, files: Vec::new(), by, held_out: HashSet::new() };
        let mut sides = Sides::default();
        let mut all = survey(path, options, seed, progress, |seen| {
            match seen.place.filter(|_| by == SplitBy::Source) {
                Some(_) => files.add(seen),
                None => places.add(&seen.hash),
            }
            sides.add(&rule, seen);
        })?;
        let (border, files) = (places.border(), files.finish());
        if !files.is_empty() || !rule.is_done(border) {
            rule.border = border;
            let has = [places.has_training(border), places.has_held_out(border)];
            rule.files = sides_of_files(&files, fraction, has);
            let mut again = |each: &mut dyn FnMut(&Seen<'_>)| -> Result<Documents> {
                // What there is to say of the data is said once.
                let _ = options.reading.take_notes();
                survey(path, options, seed, progress, each)
            };
            if !files.is_empty() {
                let mut held_out = HashSet::new();
                again(&mut |seen| {
                    if rule.place(seen) != Some(Place::Training) {
                        held_out.insert(seen.hash.short());
                    }
                })?;
                rule.held_out = held_out;
            }
            sides = Sides::default();
            all = again(&mut |seen| sides.add(&rule, seen))?;
        }
        let rule = Arc::new(rule);
        let Sides { training, validation, tally } = sides;
        let corpus = |place, counts: Counts| {
            let side = Side::Part(place, Arc::clone(&rule));
            Self::new(path, options, seed, side, counts.facts(all.cut_files()))
        };
        Ok(TextSplit {
            training: corpus(Place::Training, training),
            validation: corpus(Place::HeldOut, validation),
            held_out: tally.finish(),
        })
    }
}

/// The counts of both sides.
#[derive(Default)]
struct Sides {
    training: Counts,
    validation: Counts,
    tally: Tally,
}

impl Sides {
    fn add(&mut self, rule: &SplitRule, seen: &Seen<'_>) {
        let place = rule.place(seen);
        self.tally.add(seen, place);
        match place {
            Some(Place::Training) => self.training.add(seen.hash, seen.bytes),
            Some(Place::HeldOut) => self.validation.add(seen.hash, seen.bytes),
            Some(Place::Margin) | None => {}
        }
    }
}

/// The text files seen so far.
#[derive(Default)]
struct Files {
    /// Those before the last, and places of those without documents.
    done: Vec<TextFile>,
    documents: u64,
    bytes: u64,
    hasher: Sha256,
}

impl Files {
    fn add(&mut self, seen: &Seen<'_>) {
        let Some(place) = seen.place else { return };
        // A file of white space only has a number, but no document.
        while (self.done.len() as u64) < place.file {
            self.close();
        }
        self.documents += 1;
        self.bytes += seen.bytes;
        self.hasher.update(seen.hash.bytes());
    }

    fn close(&mut self) {
        let hash = TextHash::of_hashes(std::mem::take(&mut self.hasher));
        let Self { documents, bytes, .. } = *self;
        self.done.push(TextFile { documents, bytes, hash });
        (self.documents, self.bytes) = (0, 0);
    }

    fn finish(mut self) -> Vec<TextFile> {
        if self.documents > 0 {
            self.close();
        }
        self.done
    }
}
