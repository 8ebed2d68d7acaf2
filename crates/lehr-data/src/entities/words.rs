//! Words of a text.

use std::ops::Range;

/// Cuts a text into words: runs of letters, digits and marks; every other character and every
/// Chinese, Japanese or Korean one is a word of its own. White space belongs to no word.
pub fn words_of(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    // Whether a letter that follows at once belongs to the last word.
    let mut is_open = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        if c.is_whitespace() {
            is_open = false;
        } else if is_wordlike(c) {
            match words.last_mut().filter(|_| is_open) {
                Some(word) => word.end = end,
                None => words.push(at..end),
            }
            is_open = true;
        } else {
            words.push(at..end);
            is_open = false;
        }
    }
    words
}

/// Whether a character is part of a longer word.
fn is_wordlike(c: char) -> bool {
    let is_mark = matches!(c, '\u{300}'..='\u{36f}' | '\u{200c}' | '\u{200d}' | '_');
    (c.is_alphanumeric() || is_mark) && !is_ideograph(c)
}

/// Whether a script writes the character without spaces around it.
fn is_ideograph(c: char) -> bool {
    matches!(c,
        '\u{2e80}'..='\u{2fdf}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3134f}')
}

/// Whether a character belongs to such a script or to its punctuation.
fn is_wide(c: char) -> bool {
    is_ideograph(c) || matches!(c, '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ffef}')
}

/// Joins words to a text, with a space between two words unless one of both ends or begins there
/// with a Chinese or Japanese character. A sentence of single characters, with a Chinese or
/// Japanese one among them, has no spaces at all.
pub(crate) fn join<S: AsRef<str>>(words: &[S]) -> (String, Vec<Range<usize>>) {
    let single = |word: &S| word.as_ref().chars().nth(1).is_none();
    let wide = |word: &S| word.as_ref().chars().any(is_wide);
    let is_spelt = words.iter().all(single) && words.iter().any(wide);
    let (mut text, mut ranges) = (String::new(), Vec::with_capacity(words.len()));
    for word in words {
        let word = word.as_ref();
        let touches = |c: Option<char>| c.is_none_or(is_wide);
        if !is_spelt && !touches(text.chars().next_back()) && !touches(word.chars().next()) {
            text.push(' ');
        }
        ranges.push(text.len()..text.len() + word.len());
        text.push_str(word);
    }
    (text, ranges)
}
