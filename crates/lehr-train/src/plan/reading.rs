//! What a plan needs to know of documents, without holding them in memory.

use std::path::Path;

use lehr_data::{Document, Error as DataError, ReadOptions, Reading, documents};
use lehr_tokenizer::Tokenizer;
use sha2::{Digest, Sha256};

use super::first_words;
use crate::watch::watch;
use crate::{Notes, Result};

/// Bytes of documents that are tokenised to estimate the number of tokens of larger data.
const SAMPLE_BYTES: usize = 64 << 20;
/// Bytes of documents tokenised at a time.
const GROUP_BYTES: usize = 8 << 20;

/// Facts of the documents of a file or folder.
pub(super) struct Overview {
    /// UTF-8 bytes of all documents.
    pub(super) bytes: usize,
    /// Number of documents.
    pub(super) documents: usize,
    /// The first words of the first document.
    pub(super) prompt: String,
}

impl Overview {
    /// Reads all documents once.
    pub(super) fn read(data: &Path, options: &ReadOptions, notes: Notes<'_>) -> Result<Self> {
        let (mut bytes, mut n, mut prompt) = (0, 0, None);
        watch(notes, "reading the data", 0, |done| {
            for document in documents(data, options)? {
                let text = document?.text;
                bytes += text.len();
                n += 1;
                done.add_bytes(text.len());
                prompt.get_or_insert_with(|| first_words(&text));
            }
            Ok::<_, DataError>(())
        })?;
        match prompt {
            Some(prompt) => Ok(Self { bytes, documents: n, prompt }),
            None => Err(DataError::Empty { path: data.to_owned(), what: "document" }.into()),
        }
    }

    /// Returns the number of tokens of each document with those around it, in any order; of a
    /// sample if the documents are large together.
    pub(super) fn lengths(
        &self,
        data: &Path,
        options: &ReadOptions,
        tokenizer: &Tokenizer,
        notes: Notes<'_>,
    ) -> Result<Vec<usize>> {
        // What there is to say of the data was said in the first pass.
        let reading = Reading::new(options.reading.part, options.reading.skip_bad);
        let options = ReadOptions { reading, ..options.clone() };
        let share = SAMPLE_BYTES as f64 / self.bytes as f64;
        let bytes = self.bytes.min(SAMPLE_BYTES) as u64;
        watch(notes, "counting tokens", bytes, |done| {
            let (mut lengths, mut group, mut size) = (Vec::new(), Vec::new(), 0);
            let mut count = |group: &mut Vec<String>| -> Result<()> {
                let texts: Vec<&str> = group.iter().map(String::as_str).collect();
                let framed = tokenizer.encode_ended(&texts, usize::MAX)?;
                lengths.extend(framed.into_iter().map(|framed| framed.ids.len()));
                group.clear();
                Ok(())
            };
            for document in documents(data, &options)? {
                let Document { text, .. } = document?;
                if share < 1.0 && place(&text) >= share {
                    continue;
                }
                done.add_bytes(text.len());
                size += text.len();
                group.push(text);
                if size >= GROUP_BYTES {
                    count(&mut group)?;
                    size = 0;
                }
            }
            count(&mut group)?;
            Ok(lengths)
        })
    }
}

/// Maps a hash of the text to [0, 1).
fn place(text: &str) -> f64 {
    let digest = Sha256::digest(text.as_bytes());
    let bits = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
