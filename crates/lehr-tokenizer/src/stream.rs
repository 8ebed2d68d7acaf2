//! Decoding one token at a time.

use crate::Tokenizer;

/// Turns ids into text as they arrive, holding back bytes that do not yet make a whole character.
///
/// The pieces of [`push`](Self::push), joined, and then [`finish`](Self::finish) equal
/// [`Tokenizer::decode`] of all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    pending: Vec<u8>,
    at_start: bool,
    /// Whether special tokens are left out.
    without_special: bool,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, at_start: bool) -> Self {
        Self { tokenizer, pending: Vec::new(), at_start, without_special: false }
    }

    /// Leaves special tokens out of the text, which otherwise appear by name.
    #[must_use]
    pub fn without_special(self) -> Self {
        Self { without_special: true, ..self }
    }

    /// Adds the next id and returns the text that is now complete: often a whole word, sometimes
    /// nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.without_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.bytes_of(id).unwrap_or_default();
        if self.at_start && !bytes.is_empty() {
            bytes = self.tokenizer.alphabet().at_start(bytes);
            self.at_start = false;
        }
        self.pending.extend_from_slice(bytes);
        self.take_whole_characters()
    }

    /// Ends the text. An unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        let rest = self.tokenizer.alphabet().at_end(&self.pending);
        String::from_utf8_lossy(rest).into_owned()
    }

    fn take_whole_characters(&mut self) -> String {
        // A space that decoding drops at the end of a text waits for what follows it.
        let ready = self.tokenizer.alphabet().at_end(&self.pending).len();
        let mut text = String::new();
        let mut used = 0;
        loop {
            let rest = &self.pending[used..ready];
            let (valid, bad) = match std::str::from_utf8(rest) {
                Ok(_) => (rest.len(), None),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            text.push_str(&String::from_utf8_lossy(&rest[..valid]));
            used += valid;
            // Bytes that can never become a character are replaced at once; bytes that only lack
            // their continuation wait for the next token.
            let Some(bad) = bad else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            used += bad;
        }
        self.pending.drain(..used);
        text
    }
}
