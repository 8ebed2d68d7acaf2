//! Named entities: texts with marked spans, and the tags of words that stand for spans.

mod rows;
mod spans;
mod tags;
mod words;

pub use rows::{WordRow, WordToken, Words, word_rows};
pub use spans::{Entity, SpanMode, spans};
pub use tags::{Scheme, TagSet};
pub(crate) use words::join;
pub use words::words_of;

use std::ops::Range;

/// A text as words, with its named entities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedText {
    /// The record's `id` field, or else its place.
    pub id: String,
    /// The text.
    pub text: String,
    /// Byte ranges of its words, in order and apart. What lies between is white space.
    pub words: Vec<Range<usize>>,
    /// The entities, in order and apart.
    pub entities: Vec<Entity>,
}

impl TaggedText {
    /// Creates a text without an id.
    pub fn new(text: String, words: Vec<Range<usize>>, entities: Vec<Entity>) -> Self {
        Self { id: String::new(), text, words, entities }
    }

    /// Returns what a tokenizer needs of it.
    pub fn parts(&self) -> Words<'_> {
        Words { text: &self.text, words: &self.words, entities: &self.entities }
    }

    /// Returns the text of an entity.
    pub fn text_of(&self, entity: &Entity) -> &str {
        &self.text[self.bytes_of(entity)]
    }

    /// Returns the byte range of an entity.
    pub fn bytes_of(&self, entity: &Entity) -> Range<usize> {
        self.words[entity.words.start].start..self.words[entity.words.end - 1].end
    }
}
