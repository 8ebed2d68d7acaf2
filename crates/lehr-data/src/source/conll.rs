//! Files of columns: a word and its tag on each line, an empty line after each sentence (CoNLL).

use std::sync::Arc;

use super::files::{Format, Lines, SourceFile};
use super::reading::Pass;
use super::records::Place;
use crate::Result;
use crate::entities::{SpanMode, TaggedText, join, spans};

/// Lines of text by which a file is recognised.
const HEAD_LINES: usize = 200;
/// Columns of a line, at most.
const COLUMNS_MAX: usize = 10;

/// Returns whether `tag` is `O`, or a known prefix with a type: `B-PER`, `I-PER`, `E-PER`, `S-PER`,
/// `M-PER`, `L-PER` or `U-PER`.
pub(super) fn is_tag(tag: &str) -> bool {
    let typed = tag.split_once('-').filter(|(_, label)| !label.is_empty());
    tag == "O" || typed.is_some_and(|(prefix, _)| "BIESMLU".contains(prefix) && prefix.len() == 1)
}

/// Returns whether a file has columns whose last one holds tags, with few exceptions at its start.
pub(super) fn is_conll(file: &SourceFile) -> Result<bool> {
    if !matches!(file.format, Format::Text | Format::Tsv) {
        return Ok(false);
    }
    let mut lines = Lines::new(file.clone())?;
    let (mut n_words, mut n_tagged) = (0, 0);
    for _ in 0..HEAD_LINES {
        let Some((_, line)) = lines.next_line()? else { break };
        match Line::of(&line) {
            Line::Word(_, tag) => {
                n_words += 1;
                n_tagged += usize::from(is_tag(tag));
            }
            Line::Blank | Line::Comment => {}
        }
    }
    // Faulty lines are named when the file is read.
    Ok(n_words > 0 && 5 * n_tagged >= 3 * n_words)
}

/// A line of a file of columns.
enum Line<'a> {
    /// The first and the last column.
    Word(&'a str, &'a str),
    Comment,
    /// An empty line, or one that begins a document. It ends a sentence.
    Blank,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.trim().is_empty() || line.starts_with("-DOCSTART-") {
            return Self::Blank;
        }
        let columns: Vec<&str> = match line.contains('\t') {
            true => line.trim_end().split('\t').map(str::trim).collect(),
            false => line.split_whitespace().collect(),
        };
        let (word, tag) = (columns[0], columns[columns.len() - 1]);
        // "# O" is a word with its tag.
        if line.starts_with('#') && !is_tag(tag) {
            return Self::Comment;
        }
        // A line that cannot be split has no tag.
        match columns.len() {
            2..=COLUMNS_MAX => Self::Word(word, tag),
            _ => Self::Word(word, ""),
        }
    }
}

/// Appends the sentences of a file.
pub(super) fn read(file: &SourceFile, pass: &mut Pass, texts: &mut Vec<TaggedText>) -> Result<()> {
    let shared = Arc::new(file.clone());
    let mut lines = Lines::new(file.clone())?;
    let (mut words, mut tags, mut is_bad) = (Vec::new(), Vec::new(), false);
    loop {
        let line = match lines.next_line() {
            Ok(line) => line,
            Err(error) => {
                pass.bad(error)?;
                is_bad = true;
                continue;
            }
        };
        let parsed = line.as_ref().map_or(Line::Blank, |(_, line)| Line::of(line));
        match parsed {
            Line::Word(word, tag) if is_tag(tag) && !word.is_empty() => {
                words.push(word.to_owned());
                tags.push(tag.to_owned());
            }
            Line::Word(word, tag) => {
                let found = if word.is_empty() { "the word is empty" } else { "no tag at its end" };
                let number = line.as_ref().map_or(0, |(number, _)| *number);
                let reason = format!(
                    "{found} (found {tag:?}), expected a word, perhaps other columns, and a tag \
                     such as O or B-PER"
                );
                pass.bad(Place::line(shared.clone(), number).malformed(reason))?;
                is_bad = true;
            }
            Line::Comment => pass.unused("\"#\" (a comment)"),
            Line::Blank => {
                if !words.is_empty() && !is_bad {
                    pass.good();
                    if !pass.has_failed() {
                        texts.push(sentence(&words, &tags));
                    }
                }
                words.clear();
                tags.clear();
                is_bad = false;
            }
        }
        if line.is_none() {
            return Ok(());
        }
    }
}

fn sentence(words: &[String], tags: &[String]) -> TaggedText {
    let entities = spans(tags.iter().map(String::as_str), SpanMode::Lenient);
    let (text, words) = join(words);
    TaggedText { text, words, entities }
}
