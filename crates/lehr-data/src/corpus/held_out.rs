//! A report of what a split holds out.

use serde::Serialize;

use super::Seen;
use crate::split::Place;

/// Maximum number of files that a report lists.
const LISTED_MAX: usize = 1000;

/// Number and size of documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Number of documents.
    pub documents: u64,
    /// UTF-8 bytes of their texts.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.documents += 1;
        self.bytes += bytes;
    }
}

/// What a split holds out, and what it drops.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HeldOut {
    /// Held-out share of all bytes.
    pub share: f64,
    /// Documents to train on.
    pub training: Amount,
    /// Held-out documents.
    pub held_out: Amount,
    /// Documents on neither side, because they are beside a held-out run in their file.
    pub margin: Amount,
    /// Documents on neither side, because they are copies of held-out or dropped documents.
    pub copies: Amount,
    /// Files with held-out documents.
    pub sources: Vec<HeldOutSource>,
    /// Number of further such files, which are not listed.
    pub n_more_sources: u64,
}

/// A file with held-out documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HeldOutSource {
    /// Name of the file below the data folder.
    pub file: String,
    /// All its documents.
    pub all: Amount,
    /// Its held-out documents.
    pub held_out: Amount,
    /// Its dropped documents beside held-out runs.
    pub margin: Amount,
    /// Number of runs of neighbouring held-out documents; 0 for records, which have no neighbours.
    pub runs: u64,
}

impl HeldOutSource {
    /// Whether the whole file is held out.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.held_out == self.all
    }
}

/// A report under way. Documents come file by file.
#[derive(Default)]
pub(super) struct Tally {
    report: HeldOut,
    file: HeldOutSource,
    in_run: bool,
}

impl Tally {
    /// Adds a document on the side of `place`; `None` = it is a copy of a held-out one.
    pub(super) fn add(&mut self, seen: &Seen<'_>, place: Option<Place>) {
        if self.file.file != seen.file_name {
            self.close();
            seen.file_name.clone_into(&mut self.file.file);
        }
        let Self { report, file, in_run } = self;
        file.all.add(seen.bytes);
        match place {
            Some(Place::Training) => report.training.add(seen.bytes),
            Some(Place::HeldOut) => {
                report.held_out.add(seen.bytes);
                file.held_out.add(seen.bytes);
                file.runs += u64::from(!*in_run && seen.place.is_some());
            }
            Some(Place::Margin) => {
                report.margin.add(seen.bytes);
                file.margin.add(seen.bytes);
            }
            None => report.copies.add(seen.bytes),
        }
        *in_run = place == Some(Place::HeldOut);
    }

    fn close(&mut self) {
        self.in_run = false;
        let file = std::mem::take(&mut self.file);
        if file.held_out.documents == 0 {
            return;
        }
        match self.report.sources.len() < LISTED_MAX {
            true => self.report.sources.push(file),
            false => self.report.n_more_sources += 1,
        }
    }

    pub(super) fn finish(mut self) -> HeldOut {
        self.close();
        let HeldOut { training, held_out, margin, copies, .. } = &self.report;
        let all: u64 = [training, held_out, margin, copies].iter().map(|a| a.bytes).sum();
        self.report.share = held_out.bytes as f64 / all.max(1) as f64;
        self.report
    }
}
