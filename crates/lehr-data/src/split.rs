//! Split of data into training and validation.

mod files;
mod runs;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

pub(crate) use files::{FileSide, TextFile, sides_of_files};
pub(crate) use runs::Place;

/// What is held out as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// Sources. A record is a source, and so is a text file. If text files are few, runs of
    /// documents within them are held out, and the document on each side of a run is dropped. So
    /// no neighbour of a held-out document is trained on.
    #[default]
    Source,
    /// Documents, also those cut from one text file: a held-out one has neighbours in training.
    Document,
}

/// How a data set is split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitOptions {
    /// Held-out share, between 0 and 1, both excluded.
    pub fraction: f64,
    /// The same seed gives the same split.
    pub seed: u64,
    /// What is held out as a whole.
    pub by: SplitBy,
}

/// Hash of a text and a seed. It decides on which side of a split the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextHash([u8; 32]);

impl TextHash {
    pub(crate) fn new(text: &str, seed: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update(text.as_bytes());
        Self(hasher.finalize().into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The hash of a sequence of hashes.
    pub(crate) fn of_hashes(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Maps the hash to [0, 1); a split compares it with its border.
    pub(crate) fn place(&self) -> f64 {
        self.number(0)
    }

    /// The first 16 bytes, by which equal texts are found.
    pub(crate) fn short(&self) -> u128 {
        self.0[..16].iter().fold(0, |bits, &byte| (bits << 8) | u128::from(byte))
    }

    /// A second number in [0, 1), by which samples of one side are drawn.
    pub(crate) fn sample_place(&self) -> f64 {
        self.number(8)
    }

    fn number(&self, at: usize) -> f64 {
        let bytes = &self.0[at..at + 8];
        let bits = bytes.iter().fold(0u64, |bits, &byte| (bits << 8) | u64::from(byte));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Border between training and validation, known after one pass over the texts.
///
/// The side of a text depends only on the text, the fraction and the seed. It stays when texts are
/// added, and equal texts are on one side, so no copy of a validation text is trained on. If one
/// side were empty, the border moves so that the text nearest to it changes sides with all its
/// copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Border(f64);

impl Border {
    /// The border at a fraction, before it is known whether a side is empty.
    pub(crate) fn at(fraction: f64) -> Self {
        Self(fraction)
    }

    /// Whether the text of this hash is held out.
    pub(crate) fn holds_out(self, hash: &TextHash) -> bool {
        hash.place() < self.0
    }
}

/// The hashes of texts, reduced to what their split depends on.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    fraction: f64,
    lowest: f64,
    highest: f64,
}

impl Places {
    /// Begins a pass over texts that holds out about `fraction` of them.
    ///
    /// # Errors
    /// `fraction` is not between 0 and 1, both excluded.
    pub(crate) fn new(fraction: f64) -> Result<Self> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::Fraction { fraction });
        }
        Ok(Self { fraction, lowest: f64::INFINITY, highest: f64::NEG_INFINITY })
    }

    pub(crate) fn add(&mut self, hash: &TextHash) {
        self.lowest = self.lowest.min(hash.place());
        self.highest = self.highest.max(hash.place());
    }

    /// Whether a text is on the training side of `border`.
    pub(crate) fn has_training(&self, border: Border) -> bool {
        self.highest >= border.0
    }

    /// Whether a text is on the held-out side of `border`.
    pub(crate) fn has_held_out(&self, border: Border) -> bool {
        self.lowest < border.0
    }

    /// Returns the border that leaves no side empty. A single text, with all its copies, is for
    /// training.
    pub(crate) fn border(&self) -> Border {
        Border(match self {
            _ if self.lowest >= self.highest => 0.0,
            _ if self.lowest >= self.fraction => self.lowest.next_up(),
            _ if self.highest < self.fraction => self.highest,
            _ => self.fraction,
        })
    }
}

/// Splits items into (training, validation), with about `fraction` of them in validation, in order.
///
/// The side of an item depends only on its text and `seed`. It stays when items are added, and
/// equal texts stay together, so no copy of a validation text is trained on. There is one
/// exception: if one side were empty although there are two different texts or more, the text
/// nearest to the border changes sides, with all its copies.
///
/// # Errors
/// `fraction` is not between 0 and 1, both excluded.
pub fn split_by_text<T>(
    items: Vec<T>,
    text: impl Fn(&T) -> String,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<T>, Vec<T>)> {
    let mut places = Places::new(fraction)?;
    let hashes: Vec<_> = items.iter().map(|item| TextHash::new(&text(item), seed)).collect();
    hashes.iter().for_each(|hash| places.add(hash));
    let border = places.border();
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (item, hash) in items.into_iter().zip(&hashes) {
        if border.holds_out(hash) { validation.push(item) } else { train.push(item) }
    }
    Ok((train, validation))
}
