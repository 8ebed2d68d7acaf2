//! Split of data into training and validation.

use sha2::{Digest, Sha256};

use crate::source::Document;
use crate::{Error, Result};

/// Splits documents into (training, validation) by text; see [`split_by_text`].
///
/// # Errors
/// `fraction` is not between 0 and 1.
pub fn split_documents(
    documents: Vec<Document>,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<Document>, Vec<Document>)> {
    split_by_text(documents, |document| document.text.clone(), fraction, seed)
}

/// Splits items into (training, validation), with about `fraction` of them in validation, in order.
///
/// The side of an item depends only on its text and `seed`. It stays when items are added, and
/// equal texts stay together, so no copy of a validation text is trained on. There is one
/// exception: if one side were empty although there are two items or more, the item nearest to the
/// border changes sides.
///
/// # Errors
/// `fraction` is not between 0 and 1, both excluded.
pub fn split_by_text<T>(
    items: Vec<T>,
    text: impl Fn(&T) -> String,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<T>, Vec<T>)> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::Fraction { fraction });
    }
    let places: Vec<f64> = items.iter().map(|item| place(&text(item), seed)).collect();
    let mut to_validation: Vec<bool> = places.iter().map(|&place| place < fraction).collect();
    let order = |&a: &usize, &b: &usize| places[a].total_cmp(&places[b]);
    if items.len() >= 2 {
        if to_validation.iter().all(|&chosen| !chosen) {
            let lowest = (0..items.len()).min_by(order).unwrap_or(0);
            to_validation[lowest] = true;
        } else if to_validation.iter().all(|&chosen| chosen) {
            let highest = (0..items.len()).max_by(order).unwrap_or(0);
            to_validation[highest] = false;
        }
    }
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (item, chosen) in items.into_iter().zip(to_validation) {
        if chosen { validation.push(item) } else { train.push(item) }
    }
    Ok((train, validation))
}

/// Maps a hash of the text and the seed to [0, 1).
fn place(text: &str, seed: u64) -> f64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(text.as_bytes());
    let digest = hasher.finalize();
    let bits = digest[..8].iter().fold(0u64, |bits, &byte| (bits << 8) | u64::from(byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
