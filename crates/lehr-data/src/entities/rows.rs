//! From words to rows of tokens, with the position at which each word is tagged.

use std::ops::Range;

use lehr_tokenizer::Tokenizer;

use super::Entity;
use crate::{Error, Result};

/// The token of a word at which a model tags it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordToken {
    /// The first, for models that read in both directions, as is usual for them.
    First,
    /// The last, for decoders: they have read the whole word there.
    Last,
}

/// A text to encode.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    /// The text.
    pub text: &'a str,
    /// Byte ranges of its words.
    pub words: &'a [Range<usize>],
    /// Its entities, if they are known.
    pub entities: &'a [Entity],
}

/// A text, or a part of a long one, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordRow {
    /// Token ids, with the special tokens around a text.
    pub ids: Vec<u32>,
    /// Words that are tagged in this row, each with the position of its token. Every word of a text
    /// that has tokens is tagged in one of its rows.
    pub places: Vec<(usize, usize)>,
    /// Number of words whose tokens did not fit into a row.
    pub n_cut: usize,
}

/// Part of the tokens of a row that repeat the end of the row before, as context.
const CONTEXT_PART: usize = 4;

/// Encodes texts as rows of at most `max_tokens` tokens. The words of a long text are spread over
/// several rows, which repeat some words as context; a known entity is not divided if a row holds
/// it.
///
/// # Errors
/// If the vocabulary cannot express a text, or a row has no room for a token of text.
pub fn word_rows(
    tokenizer: &Tokenizer,
    texts: &[Words<'_>],
    token: WordToken,
    max_tokens: usize,
) -> Result<Vec<Vec<WordRow>>> {
    let (before, after) = match token {
        WordToken::First => (tokenizer.prefix_ids().to_vec(), tokenizer.suffix_ids().to_vec()),
        // What ends a text says nothing to a decoder, which has tagged all words by then.
        WordToken::Last => (tokenizer.document_prefix(), Vec::new()),
    };
    let n_around = before.len() + after.len();
    if max_tokens <= n_around {
        let least = n_around + 1;
        return Err(Error::RowTooShort { what: "words", seq_len: max_tokens, least });
    }
    let words: Vec<_> = texts.iter().map(|text| (text.text, text.words)).collect();
    let encoded = tokenizer.encode_words(&words)?;
    let rows = encoded.iter().zip(texts).map(|(tokens, text)| {
        let windows = windows(tokens, text.entities, max_tokens - n_around);
        let row = |window| row(tokens, window, token, (&before, &after), max_tokens - n_around);
        windows.into_iter().map(row).collect()
    });
    Ok(rows.collect())
}

/// The words of a row: those before `tagged_from` are context.
struct Window {
    words: Range<usize>,
    tagged_from: usize,
}

fn windows(tokens: &[Vec<u32>], entities: &[Entity], room: usize) -> Vec<Window> {
    // Tokens before each word.
    let mut before = vec![0];
    before.extend(tokens.iter().scan(0, |sum, ids| {
        *sum += ids.len();
        Some(*sum)
    }));
    let length = |words: Range<usize>| before[words.end] - before[words.start];
    let mut windows = Vec::new();
    let mut from = 0;
    while from < tokens.len() {
        let mut start = from;
        while start > 0 && length(start - 1..from) <= room / CONTEXT_PART {
            start -= 1;
        }
        let mut end = from + 1;
        while end < tokens.len() && length(start..end + 1) <= room {
            end += 1;
        }
        // A long word leaves no room for context.
        if length(start..end) > room {
            start = from;
        }
        let inside = entities.iter().find(|e| e.words.start < end && end < e.words.end);
        if let Some(entity) = inside.filter(|entity| entity.words.start > from) {
            end = entity.words.start;
        }
        windows.push(Window { words: start..end, tagged_from: from });
        from = end;
    }
    windows
}

fn row(
    tokens: &[Vec<u32>],
    Window { words, tagged_from }: Window,
    token: WordToken,
    (before, after): (&[u32], &[u32]),
    room: usize,
) -> WordRow {
    let mut row = WordRow { ids: before.to_vec(), places: Vec::new(), n_cut: 0 };
    for word in words {
        let ids = &tokens[word];
        // Only a word that is alone in its row can be too long.
        let ids = &ids[..ids.len().min(room)];
        row.n_cut += usize::from(ids.len() < tokens[word].len());
        let start = row.ids.len();
        row.ids.extend(ids);
        if word >= tagged_from && !ids.is_empty() {
            row.places.push(match token {
                WordToken::First => (word, start),
                WordToken::Last => (word, row.ids.len() - 1),
            });
        }
    }
    row.ids.extend(after);
    row
}
