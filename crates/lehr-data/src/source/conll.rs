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
            Line::Word(columns) => {
                n_words += 1;
                n_tagged += usize::from(columns.last().is_some_and(|tag| is_tag(tag)));
            }
            Line::Blank | Line::Comment => {}
        }
    }
    // Faulty lines are named when the file is read.
    Ok(n_words > 0 && 5 * n_tagged >= 3 * n_words)
}

/// A line of a file of columns.
enum Line<'a> {
    /// All columns. The last one is the tag; empty if the line cannot be split.
    Word(Vec<&'a str>),
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
        let mut columns: Vec<&str> = match line.contains('\t') {
            true => line.trim_end().split('\t').map(str::trim).collect(),
            // Other white space, such as that between thousands, belongs to a word.
            false => line.split(' ').filter(|column| !column.is_empty()).collect(),
        };
        // "# O" is a word with its tag.
        if line.starts_with('#') && !columns.last().is_some_and(|tag| is_tag(tag)) {
            return Self::Comment;
        }
        if !(2..=COLUMNS_MAX).contains(&columns.len()) {
            columns.push("");
        }
        Self::Word(columns)
    }
}

/// The lines of a sentence.
#[derive(Default)]
struct Sentence {
    line: u64,
    /// The first two columns of each word, and its tag.
    words: Vec<([String; 2], String)>,
    n_columns: usize,
    is_bad: bool,
}

impl Sentence {
    fn push(&mut self, columns: &[&str], line: u64) {
        if self.words.is_empty() {
            self.line = line;
        }
        self.n_columns = self.n_columns.max(columns.len());
        let [first, second] = [columns[0], columns[1]].map(str::to_owned);
        self.words.push(([first, second], columns[columns.len() - 1].to_owned()));
    }

    /// Whether the first column counts the words, as in CoNLL-U.
    fn is_counted(&self) -> bool {
        let counts =
            |(at, (columns, _)): (usize, &([String; 2], String))| columns[0].parse() == Ok(at + 1);
        self.n_columns > 2 && self.words.len() > 1 && self.words.iter().enumerate().all(counts)
    }

    fn text(self, file: &SourceFile) -> TaggedText {
        let column = usize::from(self.is_counted());
        let id = format!("{}:{}", file.name, self.line);
        let tags = self.words.iter().map(|(_, tag)| tag.as_str());
        let entities = spans(tags, SpanMode::Lenient);
        let words: Vec<&str> = self.words.iter().map(|(words, _)| words[column].as_str()).collect();
        let (text, words) = join(&words);
        TaggedText { id, ..TaggedText::new(text, words, entities) }
    }
}

/// Appends the sentences of a file.
pub(super) fn read(file: &SourceFile, pass: &mut Pass, texts: &mut Vec<TaggedText>) -> Result<()> {
    let shared = Arc::new(file.clone());
    let mut lines = Lines::new(file.clone())?;
    let mut sentence = Sentence::default();
    loop {
        let line = match lines.next_line() {
            Ok(line) => line,
            Err(error) => {
                pass.bad(error)?;
                sentence.is_bad = true;
                continue;
            }
        };
        let (number, parsed) = match &line {
            Some((number, line)) => (*number, Line::of(line)),
            None => (0, Line::Blank),
        };
        match parsed {
            Line::Word(columns) => match fault(&columns) {
                None => sentence.push(&columns, number),
                Some(fault) => {
                    pass.bad(Place::line(shared.clone(), number).malformed(fault))?;
                    sentence.is_bad = true;
                }
            },
            Line::Comment => pass.unused("\"#\" (a comment)"),
            Line::Blank => {
                let done = std::mem::take(&mut sentence);
                if !done.words.is_empty() && !done.is_bad {
                    end(done, file, pass, texts);
                }
            }
        }
        if line.is_none() {
            return Ok(());
        }
    }
}

/// Returns what is wrong with the columns of a line.
fn fault(columns: &[&str]) -> Option<String> {
    let (word, tag) = (columns[0], columns[columns.len() - 1]);
    let found = match (word.is_empty(), is_tag(tag)) {
        (false, true) => return None,
        (true, _) => "the word is empty",
        (false, false) => "there is no tag at its end",
    };
    Some(format!(
        "{found} (found {tag:?}), expected a word, perhaps other columns, and a tag such as O or \
         B-PER"
    ))
}

/// Appends a whole sentence, unless the file has bad lines.
fn end(sentence: Sentence, file: &SourceFile, pass: &mut Pass, texts: &mut Vec<TaggedText>) {
    pass.good();
    let n_used = if sentence.is_counted() { 3 } else { 2 };
    if sentence.n_columns > n_used {
        pass.unused("\"other columns\"");
    }
    if !pass.has_failed() {
        texts.push(sentence.text(file));
    }
}
