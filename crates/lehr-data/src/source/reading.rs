//! What a pass over files uses, and what it reports: each field, file and record is used, refused,
//! or named in a note.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::files::SourceFile;
use super::folder::{Part, files_of};
use super::records::Record;
use crate::error::listed;
use crate::{Error, Result};

/// Bad records that are named; the others are counted.
const LISTED: usize = 20;
/// Fields that are counted by name; the others are counted together.
const NAMED: usize = 64;

/// How data is read. Clones share the notes of the last pass.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The part of a folder that is read.
    pub part: Part,
    /// Whether bad records are left out and counted. Otherwise they are an error.
    pub skip_bad: bool,
    notes: Arc<Mutex<Vec<String>>>,
}

impl Reading {
    /// Reads `part`; `skip_bad` leaves out bad records.
    #[must_use]
    pub fn new(part: Part, skip_bad: bool) -> Self {
        Self { part, skip_bad, notes: Arc::default() }
    }

    /// Takes the notes for the user: files that were read and not, fields that are not used,
    /// records that were left out.
    #[must_use]
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, notes: Vec<String>) {
        let mut all = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        // Data may be read in several passes, which find the same.
        for note in notes {
            if !all.contains(&note) {
                all.push(note);
            }
        }
    }
}

impl PartialEq for Reading {
    /// Compares the settings; notes are results.
    fn eq(&self, other: &Self) -> bool {
        (self.part, self.skip_bad) == (other.part, other.skip_bad)
    }
}

impl Eq for Reading {}

/// One pass over the records of a data set.
///
/// A bad record does not end the pass: its error is kept, and no later record is returned unless
/// bad ones are skipped. [`end`](Self::end) returns all errors together.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    reading: Reading,
    file_note: Option<String>,
    /// Records by unused field, in order of names.
    unused: BTreeMap<String, u64>,
    unused_beyond: u64,
    blank: u64,
    blank_answers: u64,
    n_good: u64,
    bad: Vec<Error>,
    n_bad: u64,
}

impl Pass {
    /// Begins a pass over the data at `path`, and returns the files to read.
    pub(crate) fn begin(reading: &Reading, path: &Path) -> Result<(Self, VecDeque<SourceFile>)> {
        let found = files_of(path, reading.part)?;
        let mut pass = Self::over(reading);
        pass.file_note = found.note;
        Ok((pass, found.files.into()))
    }

    /// Begins a pass over examples that were read before.
    pub(crate) fn over(reading: &Reading) -> Self {
        Self { reading: reading.clone(), ..Self::default() }
    }

    /// Returns what `parse` makes of a record. What it leaves in the record counts as unused.
    /// `None` if the record is bad, or if one before it was and bad ones are not skipped.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
    pub(crate) fn take<T>(
        &mut self,
        record: Result<Record>,
        parse: impl FnOnce(&mut Record) -> Result<T>,
    ) -> Result<Option<T>> {
        let parsed = record.and_then(|mut record| {
            let parsed = parse(&mut record)?;
            Ok((parsed, record))
        });
        match parsed {
            Ok((parsed, record)) => {
                record.unused().for_each(|name| self.unused(&name));
                self.blank_answers += u64::from(record.has_blank_answer);
                self.good();
                Ok(Some(parsed).filter(|_| !self.has_failed()))
            }
            Err(error) => self.bad(error).map(|()| None),
        }
    }

    /// Counts a good record.
    pub(crate) fn good(&mut self) {
        self.n_good += 1;
    }

    /// Keeps the error of a bad record.
    ///
    /// # Errors
    /// The error is about more than a record.
    pub(crate) fn bad(&mut self, error: Error) -> Result<()> {
        let is_of_one = error.is_of_record() || (self.reading.skip_bad && error.is_of_line());
        if !is_of_one {
            return Err(error);
        }
        self.n_bad += 1;
        if self.bad.len() < LISTED {
            self.bad.push(error);
        }
        Ok(())
    }

    /// Counts a field that is not used, named in quotes and perhaps with its place.
    pub(crate) fn unused(&mut self, name: &str) {
        let has_room = self.unused.len() < NAMED;
        match self.unused.get_mut(name) {
            Some(count) => *count += 1,
            None if has_room => {
                self.unused.insert(name.to_owned(), 1);
            }
            None => self.unused_beyond += 1,
        }
    }

    /// Counts a document of white space only.
    pub(crate) fn blank(&mut self) {
        self.blank += 1;
    }

    /// Whether the pass ends with an error.
    pub(crate) fn has_failed(&self) -> bool {
        self.n_bad > 0 && !self.reading.skip_bad
    }

    /// Ends the pass: returns the bad records as one error, or hands the notes to the [`Reading`].
    pub(crate) fn end(&mut self) -> Result<()> {
        let Self {
            file_note,
            unused,
            unused_beyond,
            blank,
            blank_answers,
            n_good,
            bad,
            n_bad,
            reading,
        } = std::mem::take(self);
        // Without a good record there is nothing to continue with.
        if n_bad > 0 && (!reading.skip_bad || n_good == 0) {
            return Err(match <[Error; 1]>::try_from(bad) {
                Ok([error]) => error,
                Err(bad) => Error::BadRecords { count: n_bad, listing: listed(&bad, n_bad) },
            });
        }
        let mut notes: Vec<String> = file_note.into_iter().collect();
        if !unused.is_empty() {
            let mut fields: Vec<String> =
                unused.iter().map(|(name, count)| of_records(name, *count)).collect();
            if unused_beyond > 0 {
                fields.push(format!("and further fields, {unused_beyond} times"));
            }
            notes.push(format!("warning: not used: {}", fields.join(", ")));
        }
        if blank > 0 {
            notes.push(format!("warning: {blank} documents of white space only are left out"));
        }
        if blank_answers > 0 {
            let what = "learnt answers of white space only";
            notes.push(format!("warning: {blank_answers} records have {what}"));
        }
        if n_bad > 0 {
            notes
                .push(format!("warning: {n_bad} bad records are left out:{}", listed(&bad, n_bad)));
        }
        reading.note(notes);
        Ok(())
    }
}

fn of_records(name: &str, count: u64) -> String {
    let records = if count == 1 { "record" } else { "records" };
    format!("field {name} of {count} {records}")
}
