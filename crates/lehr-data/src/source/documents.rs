//! Readers of documents.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::document::Document;
use super::files::{Format, SourceFile};
use super::reading::{Pass, Reading};
use super::records::{Record, records};
use super::text::TextDocuments;
use crate::{Error, Result};

/// How to read documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// The field of records that holds the text.
    pub text_field: String,
    /// Plain text files are cut at paragraphs into documents of at least this many bytes, because a
    /// book as one document could not be split into training and validation. 0 keeps files whole.
    pub document_bytes: usize,
    /// The part of a folder, and what becomes of bad records.
    pub reading: Reading,
}

impl Default for ReadOptions {
    /// Field `text`, documents of 2048 bytes or more.
    fn default() -> Self {
        let reading = Reading::default();
        Self { text_field: "text".to_owned(), document_bytes: 2048, reading }
    }
}

type Items = Box<dyn Iterator<Item = Result<Item>> + Send>;

/// Place of a document that was cut from a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextPlace {
    /// Number of the text file, from 0.
    pub(crate) file: u64,
    /// Number of the document in its file, from 0. Documents of white space only do not count.
    pub(crate) document: u64,
}

/// An iterator over the documents of a file or folder; it ends after the first error. Bad records
/// give one error at the end, which lists them.
pub struct Documents {
    files: VecDeque<SourceFile>,
    current: Items,
    options: ReadOptions,
    pass: Pass,
    /// Documents of plain text that the current file gave.
    n_of_file: u64,
    cut_files: u64,
    /// Name of the current file.
    name: String,
    /// Place of the next document; `None` for records.
    next_place: Option<TextPlace>,
    n_text_files: u64,
}

/// Iterates over the documents of a file or folder. Skips documents of white space only.
///
/// # Errors
/// The path does not exist or its ending is not known. Each document may give an error of
/// [`read_documents`].
pub fn documents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Documents> {
    let (pass, files) = Pass::begin(&options.reading, path.as_ref())?;
    let (current, options) = (Box::new(std::iter::empty()), options.clone());
    Ok(Documents {
        files,
        current,
        options,
        pass,
        n_of_file: 0,
        cut_files: 0,
        name: String::new(),
        next_place: None,
        n_text_files: 0,
    })
}

/// Reads all documents of a file or folder.
///
/// # Errors
/// A file cannot be read or decompressed, is not UTF-8 or not well-formed, records are bad or lack
/// the text field (unless `options.reading` skips them), or there is no document at all.
pub fn read_documents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Vec<Document>> {
    let path = path.as_ref();
    let all = documents(path, options)?.collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(Error::Empty { path: PathBuf::from(path), what: "document" });
    }
    Ok(all)
}

/// What a file gives: text is a document, a record becomes one.
enum Item {
    Document(Document),
    Record(Record),
}

impl Documents {
    /// Number of text files so far that were cut into more than one document.
    pub fn cut_files(&self) -> u64 {
        self.cut_files
    }

    /// Name of the file of the last document.
    pub(crate) fn file_name(&self) -> &str {
        &self.name
    }

    /// Place of the last document in its text file; `None` for a record.
    pub(crate) fn place(&self) -> Option<TextPlace> {
        let next = self.next_place?;
        Some(TextPlace { document: next.document.saturating_sub(1), ..next })
    }

    fn open(&mut self, file: &SourceFile) -> Result<Items> {
        self.name.clone_from(&file.name);
        self.next_place = None;
        if file.format == Format::Text {
            self.next_place = Some(TextPlace { file: self.n_text_files, document: 0 });
            self.n_text_files += 1;
            let documents = TextDocuments::new(file.clone(), self.options.document_bytes)?;
            return Ok(Box::new(documents.map(|document| document.map(Item::Document))));
        }
        Ok(Box::new(records(file)?.map(|record| record.map(Item::Record))))
    }

    /// Returns the document of an item; `None` if it is bad, or white space only.
    fn document(&mut self, item: Result<Item>) -> Result<Option<Document>> {
        let document = match item {
            Ok(Item::Document(document)) => {
                self.n_of_file += 1;
                Some(document).filter(|_| !self.pass.has_failed())
            }
            Ok(Item::Record(record)) => {
                let field = &self.options.text_field;
                self.pass.take(Ok(record), |record| {
                    let text = record.take_text(field)?;
                    let id = record.take_id();
                    Ok(Document { text, id, metadata: record.fields.clone() })
                })?
            }
            Err(error) => {
                self.pass.bad(error)?;
                None
            }
        };
        if document.as_ref().is_some_and(|document| document.text.trim().is_empty()) {
            self.pass.blank();
            return Ok(None);
        }
        Ok(document)
    }

    fn end_with(&mut self, error: Error) -> Option<Result<Document>> {
        self.files.clear();
        self.current = Box::new(std::iter::empty());
        // What was found before is part of no note.
        self.pass = Pass::default();
        Some(Err(error))
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(item) = self.current.next() else {
                self.cut_files += u64::from(std::mem::take(&mut self.n_of_file) > 1);
                let Some(file) = self.files.pop_front() else {
                    return self.pass.end().err().map(Err);
                };
                match self.open(&file) {
                    Ok(items) => self.current = items,
                    Err(error) => return self.end_with(error),
                }
                continue;
            };
            match self.document(item) {
                Ok(Some(document)) => {
                    if let Some(place) = &mut self.next_place {
                        place.document += 1;
                    }
                    return Some(Ok(document));
                }
                Ok(None) => {}
                Err(error) => return self.end_with(error),
            }
        }
    }
}
