//! Words of a text to tokens of their own.

use std::collections::HashMap;
use std::ops::Range;

use crate::{Result, Tokenizer};

/// Tokens of words that occur again: words, and whether they begin a text.
type Known<'a> = HashMap<(&'a str, bool), Vec<u32>>;

impl Tokenizer {
    /// Encodes texts word by word: no token is part of two words. `words` are byte ranges in order,
    /// and a word gets the white space before it, as most tokenizers have it. Returns the tokens of
    /// each word of each text, without special ones. A word may have none.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    ///
    /// # Panics
    /// If a range is no part of its text.
    pub fn encode_words(&self, texts: &[(&str, &[Range<usize>])]) -> Result<Vec<Vec<Vec<u32>>>> {
        let mut known = Known::new();
        let mut encoded = Vec::with_capacity(texts.len());
        for (text, words) in texts {
            let mut end = 0;
            let mut of_text = Vec::with_capacity(words.len());
            for (at, word) in words.iter().enumerate() {
                let key = (&text[end..word.end], at == 0);
                let ids = match known.get(&key) {
                    Some(ids) => ids.clone(),
                    None => {
                        let ids = match key {
                            (first, true) => self.encode(first)?,
                            (word, false) => self.encode_continued(word)?,
                        };
                        known.insert(key, ids.clone());
                        ids
                    }
                };
                of_text.push(ids);
                end = word.end;
            }
            encoded.push(of_text);
        }
        Ok(encoded)
    }
}
