//! Rows of `.csv` and `.tsv` files.
//!
//! The parser is our own because it must refuse what others guess: a quote that is never closed
//! would take all later rows into one field, and text after a closing quote would be joined to it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::{Format, Lines, SourceFile};
use super::records::{Place, Record, Records};
use crate::Result;

/// Upper bound of a quoted field.
const FIELD_BYTES_MAX: usize = 64 << 20;
/// Lines of a `.tsv` file that a quoted field may span.
const TSV_LINES_MAX: usize = 100;

/// Iterates over the rows of a file. The first one has the names of the columns.
pub(super) fn records(file: Arc<SourceFile>) -> Result<Records> {
    let lines = Lines::new((*file).clone())?;
    let is_tsv = file.format == Format::Tsv;
    let delimiter = if is_tsv { '\t' } else { ',' };
    let mut rows =
        Rows { file, lines, ahead: VecDeque::new(), delimiter, is_tsv, columns: Vec::new() };
    rows.read_header()?;
    Ok(Box::new(std::iter::from_fn(move || rows.next().transpose())))
}

struct Rows {
    file: Arc<SourceFile>,
    lines: Lines,
    /// Lines read but not used yet.
    ahead: VecDeque<(u64, String)>,
    delimiter: char,
    /// Whether quotes are text unless the rules of [`tsv_row`](Self::tsv_row) say otherwise.
    is_tsv: bool,
    columns: Vec<String>,
}

impl Rows {
    fn read_header(&mut self) -> Result<()> {
        let Some((number, line)) = self.next_line()? else { return Ok(()) };
        // A writer that quotes the names of the columns quotes every field.
        self.is_tsv &= !split(&line).all(|name| unquoted(name).is_some());
        self.columns = match self.is_tsv {
            true => split(&line).map(str::to_owned).collect(),
            false => self.quoted_row(number, &line)?,
        };
        for (index, name) in self.columns.iter().enumerate() {
            if self.columns[..index].contains(name) {
                let place = Place::line(self.file.clone(), number);
                return Err(place.broken(format!("two columns have the name {name:?}")));
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Record>> {
        let Some((number, line)) = self.next_line()? else { return Ok(None) };
        let place = Place::line(self.file.clone(), number);
        let row = match self.is_tsv {
            true => self.tsv_row(number, &line),
            false => self.quoted_row(number, &line).and_then(|row| self.counted(&place, row)),
        }?;
        if row == self.columns {
            let reason = "the row repeats the names of the columns, as in joined files".to_owned();
            return Err(place.malformed(reason));
        }
        let values = row.into_iter().map(Value::String);
        let fields: Map<_, _> = self.columns.iter().cloned().zip(values).collect();
        Record::new(Value::Object(fields), place).map(Some)
    }

    /// Returns the next line that is not empty.
    fn next_line(&mut self) -> Result<Option<(u64, String)>> {
        loop {
            let line = match self.ahead.pop_front() {
                Some(line) => Some(line),
                None => self.lines.next_line()?,
            };
            match line {
                Some((_, line)) if bare(&line).is_empty() => {}
                line => return Ok(line),
            }
        }
    }

    /// Reads a row with quoting as RFC 4180 has it, from its first line on.
    fn quoted_row(&mut self, number: u64, first: &str) -> Result<Vec<String>> {
        let place = Place::line(self.file.clone(), number);
        let unclosed =
            || place.broken("a quote begins a field and is not closed by a second one".to_owned());
        let mut row = Row::new(self.delimiter);
        let mut status = row.line(first);
        loop {
            match status {
                Status::Complete => return Ok(row.fields),
                Status::TextAfterQuote => {
                    let reason = "text follows the closing quote of a field; write quotes within \
                                  a field twice"
                        .to_owned();
                    return Err(place.malformed(reason));
                }
                Status::Open if row.field.len() > FIELD_BYTES_MAX => return Err(unclosed()),
                Status::Open => {
                    let next = match self.ahead.pop_front() {
                        Some(line) => Some(line),
                        None => self.lines.next_line()?,
                    };
                    status = row.line(&next.ok_or_else(unclosed)?.1);
                }
            }
        }
    }

    fn counted(&self, place: &Place, row: Vec<String>) -> Result<Vec<String>> {
        let expected = self.columns.len();
        match row.len() {
            n if n == expected => Ok(row),
            n => Err(place.malformed(format!("the row has {n} fields, expected {expected}"))),
        }
    }

    /// Reads a row of a `.tsv` file. Such files have no quoting by convention, but programs that
    /// write them as CSV quote fields with tabs, line breaks or quotes. So a quote is text unless
    ///
    /// - the names of the columns are quoted too, or
    /// - the field begins and ends with quotes and has all quotes within doubled, at least one; or
    /// - the row has the right number of fields only if the field is read as quoted.
    fn tsv_row(&mut self, number: u64, line: &str) -> Result<Vec<String>> {
        let place = Place::line(self.file.clone(), number);
        let n_fields = split(line).count();
        let is_open = split(line).any(|field| field.starts_with('"') && unquoted(field).is_none());
        if n_fields > self.columns.len()
            && let Some(row) = self.fitting(line)
        {
            return Ok(row);
        }
        if is_open
            && n_fields <= self.columns.len()
            && let Some(row) = self.joined(line)?
        {
            return Ok(row);
        }
        let text = |field: &str| match unquoted(field) {
            Some(inner) if inner.contains('"') => inner,
            _ => field.to_owned(),
        };
        self.counted(&place, split(line).map(text).collect())
    }

    /// Reads `text` as a quoted row with the right number of fields.
    fn fitting(&self, text: &str) -> Option<Vec<String>> {
        let mut row = Row::new(self.delimiter);
        let is_complete = row.line(text) == Status::Complete;
        (is_complete && row.fields.len() == self.columns.len()).then_some(row.fields)
    }

    /// Reads `line` and those after it as one quoted row, if the lines are no rows by themselves.
    fn joined(&mut self, line: &str) -> Result<Option<Vec<String>>> {
        let is_row = |line: &str, columns: usize| split(line).count() == columns;
        let mut all_rows = is_row(line, self.columns.len());
        let mut text = line.to_owned();
        for n in 0..TSV_LINES_MAX {
            if n == self.ahead.len() {
                match self.lines.next_line()? {
                    Some(line) => self.ahead.push_back(line),
                    None => return Ok(None),
                }
            }
            let next = &self.ahead[n].1;
            all_rows &= is_row(next, self.columns.len());
            text.push_str(next);
            if next.contains('"')
                && let Some(row) = self.fitting(&text)
            {
                if all_rows {
                    return Ok(None);
                }
                self.ahead.drain(..=n);
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}

/// A line without its line break.
fn bare(line: &str) -> &str {
    line.trim_end_matches(['\n', '\r'])
}

fn split(line: &str) -> impl Iterator<Item = &str> {
    bare(line).split('\t')
}

/// The text within the quotes of a field, if it begins and ends with quotes and all others are
/// doubled.
fn unquoted(field: &str) -> Option<String> {
    let inner = field.strip_prefix('"')?.strip_suffix('"')?;
    let without = inner.replace("\"\"", "");
    (!without.contains('"')).then(|| inner.replace("\"\"", "\""))
}

#[derive(PartialEq, Eq)]
enum Status {
    Complete,
    /// A quoted field continues on the next line.
    Open,
    TextAfterQuote,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Bare,
    Quoted,
    AfterQuote,
}

/// A row being read, line by line.
struct Row {
    delimiter: char,
    state: State,
    field: String,
    fields: Vec<String>,
}

impl Row {
    fn new(delimiter: char) -> Self {
        Self { delimiter, state: State::Start, field: String::new(), fields: Vec::new() }
    }

    fn line(&mut self, line: &str) -> Status {
        for c in line.chars() {
            self.state = match (self.state, c) {
                (State::Start, '"') | (State::AfterQuote, '"') => {
                    if self.state == State::AfterQuote {
                        self.field.push('"');
                    }
                    State::Quoted
                }
                (State::Quoted, '"') => State::AfterQuote,
                (State::Quoted, c) => {
                    self.field.push(c);
                    State::Quoted
                }
                (_, c) if c == self.delimiter => {
                    self.fields.push(std::mem::take(&mut self.field));
                    State::Start
                }
                // A line break outside quotes is at the end of the line.
                (_, '\n' | '\r') => break,
                (State::AfterQuote, _) => return Status::TextAfterQuote,
                (_, c) => {
                    self.field.push(c);
                    State::Bare
                }
            };
        }
        if self.state == State::Quoted {
            return Status::Open;
        }
        self.fields.push(std::mem::take(&mut self.field));
        Status::Complete
    }
}
