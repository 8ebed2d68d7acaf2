//! Readers of documents.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::document::Document;
use super::files::{Format, SourceFile, list};
use super::records::records;
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
}

impl Default for ReadOptions {
    /// Field `text`, documents of 2048 bytes or more.
    fn default() -> Self {
        Self { text_field: "text".to_owned(), document_bytes: 2048 }
    }
}

/// An iterator over the documents of a file or folder; it ends after the first error.
pub struct Documents {
    files: VecDeque<SourceFile>,
    current: Current,
    options: ReadOptions,
    cut_files: u64,
}

/// The documents of the file that is being read.
enum Current {
    Text(TextDocuments),
    Records(Box<dyn Iterator<Item = Result<Document>> + Send>),
    None,
}

/// Iterates over the documents of a file or folder. Skips documents of white space only.
///
/// # Errors
/// The path does not exist or its ending is not known. Each document may give an error of
/// [`read_documents`].
pub fn documents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Documents> {
    let files = list(path.as_ref())?.into();
    Ok(Documents { files, current: Current::None, options: options.clone(), cut_files: 0 })
}

/// Reads all documents of a file or folder.
///
/// # Errors
/// A file cannot be read or decompressed, is not UTF-8 or not well-formed, lacks the text field, or
/// there is no document at all.
pub fn read_documents(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Vec<Document>> {
    let path = path.as_ref();
    let all = documents(path, options)?.collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(Error::Empty { path: PathBuf::from(path), what: "document" });
    }
    Ok(all)
}

impl Documents {
    /// Number of text files so far that were cut into more than one document.
    pub fn cut_files(&self) -> u64 {
        self.cut_files
    }

    fn open(&self, file: SourceFile) -> Result<Current> {
        if file.format == Format::Text {
            return Ok(Current::Text(TextDocuments::new(file, self.options.document_bytes)?));
        }
        let field = self.options.text_field.clone();
        let document = move |record: Result<super::records::Record>| {
            let mut record = record?;
            let text = record.take_text(&field)?;
            let id = record.take_id();
            Ok(Document { text, id, metadata: record.fields })
        };
        Ok(Current::Records(Box::new(records(&file)?.map(document))))
    }

    fn next_of_file(&mut self) -> Option<Result<Document>> {
        match &mut self.current {
            Current::None => None,
            Current::Records(records) => records.next(),
            Current::Text(texts) => {
                let next = texts.next();
                if next.is_none() && texts.n_documents() > 1 {
                    self.cut_files += 1;
                }
                next
            }
        }
    }

    fn end_with(&mut self, error: Error) -> Option<Result<Document>> {
        self.files.clear();
        self.current = Current::None;
        Some(Err(error))
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_of_file() {
                Some(Ok(document)) if document.text.trim().is_empty() => {}
                Some(Ok(document)) => return Some(Ok(document)),
                Some(Err(error)) => return self.end_with(error),
                None => {
                    self.current = Current::None;
                    match self.files.pop_front().map(|file| self.open(file))? {
                        Ok(documents) => self.current = documents,
                        Err(error) => return self.end_with(error),
                    }
                }
            }
        }
    }
}
