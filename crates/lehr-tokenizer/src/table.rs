//! The concatenated bytes of all tokens, and the kind of each id.

use std::collections::HashMap;

use tokenizers::Tokenizer as HfTokenizer;

use crate::alphabet::Alphabet;
use crate::{Error, Result};

/// Unused ids that a vocabulary may have beyond its own size. Tables are as long as the largest id,
/// so without a limit a damaged file with one huge id would take all memory.
const MAX_GAPS: usize = 1 << 16;

/// The concatenated bytes of all tokens, and the kind of each id.
pub(crate) struct ByteTable {
    bytes: Vec<u8>,
    /// `starts[id]..starts[id + 1]` are the bytes of `id`.
    starts: Vec<usize>,
    known: Vec<bool>,
    special: Vec<bool>,
}

impl ByteTable {
    pub(crate) fn new(tokenizer: &HfTokenizer, alphabet: &Alphabet) -> Result<Self> {
        let vocabulary: HashMap<String, u32> = tokenizer.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        check_size(vocabulary.len(), size)?;
        let mut tokens: Vec<Option<&str>> = vec![None; size];
        for (token, &id) in &vocabulary {
            tokens[id as usize] = Some(token);
        }
        let mut special = vec![false; size];
        let mut added = vec![false; size];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if let Some(slot) = special.get_mut(id as usize) {
                *slot = token.special;
                added[id as usize] = true;
            }
        }
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        for (token, added) in tokens.iter().zip(added) {
            bytes.extend(token.map(|token| alphabet.bytes(token, added)).unwrap_or_default());
            starts.push(bytes.len());
        }
        Ok(Self { bytes, starts, known: tokens.iter().map(Option::is_some).collect(), special })
    }

    /// The largest id plus one.
    pub(crate) fn size(&self) -> usize {
        self.known.len()
    }

    /// The bytes of `id` in the middle of a text.
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let known = self.known.get(id).copied().unwrap_or(false);
        known.then(|| &self.bytes[self.starts[id]..self.starts[id + 1]])
    }

    /// Whether `id` is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// For each byte from 0x80 on, the first ordinary id that stands for exactly this byte. Invalid
    /// UTF-8 consists only of such bytes. `None` if one is missing.
    pub(crate) fn high_bytes(&self) -> Option<Vec<u32>> {
        let mut ids = vec![None; 0x80];
        for id in (0..u32::try_from(self.size()).ok()?).filter(|&id| !self.is_special(id)) {
            if let Some(&[byte]) = self.get(id)
                && byte >= 0x80
            {
                ids[usize::from(byte) - 0x80].get_or_insert(id);
            }
        }
        ids.into_iter().collect()
    }
}

/// Refuses vocabularies with large gaps between ids.
pub(crate) fn check_size(count: usize, size: usize) -> Result<()> {
    if size > count.saturating_mul(2).saturating_add(MAX_GAPS) {
        let reason = format!("{count} tokens of which one has id {}", size - 1);
        return Err(Error::Json { path: None, reason });
    }
    Ok(())
}
