//! JSON as people store records: an object per line, objects one after another, a list of
//! objects, or a list within an object. All are streamed, one record in memory at a time.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::error::Category;

use super::files::{Lines, SourceFile};
use super::records::{Place, Record, Records};
use super::strict::Strict;
use crate::{Error, Result};

/// Bytes at the start of a file from which its layout is recognised.
const HEAD_BYTES: u64 = 1 << 16;

/// Names of lists of records within an object.
const LISTS: [&str; 9] =
    ["data", "rows", "records", "examples", "items", "instances", "samples", "dataset", "train"];

/// Layout of the records in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One object per line.
    Lines,
    /// Objects over several lines each.
    Sequence,
    /// A list.
    List,
    /// An object with a list among its fields.
    ListInObject,
}

/// Iterates over the records of a JSON file.
pub(super) fn records(file: Arc<SourceFile>) -> Result<Records> {
    let mut reader = file.open()?;
    let mut head = Vec::new();
    let read = reader.by_ref().take(HEAD_BYTES).read_to_end(&mut head);
    read.map_err(|source| file.read_error(source))?;
    let layout = layout(&head);
    let reader: Box<dyn BufRead + Send> = Box::new(Cursor::new(head).chain(reader));
    if layout == Layout::Lines {
        return Ok(lines(Lines::over((*file).clone(), reader), file));
    }
    let mut items =
        Items { file, reader, line: 1, number: 0, layout, started: false, pending: None };
    Ok(Box::new(std::iter::from_fn(move || items.next().transpose())))
}

fn lines(mut lines: Lines, file: Arc<SourceFile>) -> Records {
    let next = move || {
        loop {
            match lines.next_line() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return None,
                Ok(Some((_, line))) if line.trim().is_empty() => {}
                Ok(Some((number, line))) => {
                    let place = Place::line(file.clone(), number);
                    return Some(parse(line.trim(), place));
                }
            }
        }
    };
    Box::new(std::iter::from_fn(next))
}

fn parse(text: &str, place: Place) -> Result<Record> {
    match serde_json::from_str(text) {
        Ok(Strict(value)) => Record::new(value, place),
        Err(error) => Err(place.malformed(json_reason(&error))),
    }
}

fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("not JSON: {what} at column {}", error.column())
}

/// Recognises the layout from the start of a file.
fn layout(head: &[u8]) -> Layout {
    let start = head.iter().position(|byte| !is_space(*byte)).unwrap_or(head.len());
    let text = &head[start..];
    match text.first() {
        Some(b'[') => return Layout::List,
        Some(b'{') => {}
        _ => return Layout::Lines,
    }
    if holds_list(&text[1..]).unwrap_or(false) {
        return Layout::ListInObject;
    }
    let mut lines = text.split(|byte| *byte == b'\n' || *byte == b'\r');
    let mut next = || lines.find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let (first, second) = (next().trim_ascii(), next().trim_ascii());
    match serde_json::from_slice::<IgnoredAny>(first) {
        // A first line that is cut off is either a bad record or the start of a longer object.
        Err(error) if error.classify() == Category::Eof && !second.is_empty() => {
            let continues = first.ends_with(b"{") || first.ends_with(b"[") || first.ends_with(b",");
            let is_record = second.starts_with(b"{") && !continues;
            if is_record { Layout::Lines } else { Layout::Sequence }
        }
        _ => Layout::Lines,
    }
}

/// Whether a field of the object that continues with `text` is a list of records. `None` if the
/// text ends before that is known.
fn holds_list(mut text: &[u8]) -> Option<bool> {
    loop {
        text = text.trim_ascii_start().strip_prefix(b"\"")?;
        let end = text.iter().position(|byte| *byte == b'"')?;
        let key = &text[..end];
        text = text[end + 1..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        if LISTS.iter().any(|list| list.as_bytes() == key)
            && let Some(items) = text.strip_prefix(b"[")
        {
            return Some(items.trim_ascii_start().starts_with(b"{"));
        }
        let mut scan = Scan::default();
        let end = text.iter().position(|byte| scan.ends_before(*byte))?;
        text = text[end..].trim_ascii_start();
        match text.split_first()? {
            (b',', rest) => text = rest,
            _ => return Some(false),
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}

/// Finds the end of a JSON value.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    closed: bool,
}

impl Scan {
    /// Takes the next byte. Returns whether the value ended before it.
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.closed {
            return true;
        }
        if self.in_string {
            match byte {
                _ if self.after_backslash => self.after_backslash = false,
                b'\\' => self.after_backslash = true,
                b'"' => {
                    self.in_string = false;
                    self.closed = self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            // A value without quotes or brackets ends here.
            b',' | b'}' | b']' if self.depth == 0 => return true,
            _ if self.depth == 0 && is_space(byte) => return true,
            b'}' | b']' => {
                self.depth -= 1;
                self.closed = self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Reader of a list of records, or of records over several lines.
struct Items {
    file: Arc<SourceFile>,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    number: u64,
    layout: Layout,
    started: bool,
    /// An error found after the last record.
    pending: Option<Error>,
}

impl Items {
    fn next(&mut self) -> Result<Option<Record>> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut unused = Vec::new();
        if !std::mem::replace(&mut self.started, true) && !self.start(&mut unused)? {
            return Ok(None);
        }
        let Some(first) = self.peek()? else { return self.end_of_file() };
        if self.layout != Layout::Sequence && first == b']' {
            return self.close(&mut unused).map(|()| None);
        }
        self.number += 1;
        let place = match self.layout {
            Layout::Sequence => Place::line(self.file.clone(), self.line),
            _ => Place::item(self.file.clone(), self.number, self.line),
        };
        let bytes = self.value()?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => return Err(place.malformed("not UTF-8".to_owned())),
        };
        // What follows the record is read with it, so that fields after a list are reported.
        self.pending = self.separator(&mut unused).err();
        let mut record = parse(&text, place)?;
        record.note_unused(unused);
        Ok(Some(record))
    }

    /// Reads up to the first record. Returns false if there is none.
    fn start(&mut self, unused: &mut Vec<String>) -> Result<bool> {
        match self.layout {
            Layout::List => self.expect(b'[', "a list")?,
            Layout::ListInObject => {
                self.expect(b'{', "an object")?;
                return self.field_with_list(unused, true);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Reads the fields of the outer object up to the list of records, or to the end.
    fn field_with_list(&mut self, unused: &mut Vec<String>, expect_list: bool) -> Result<bool> {
        loop {
            let key = self.value()?;
            let key: String = serde_json::from_slice(&key)
                .map_err(|_| self.broken("expected the name of a field".to_owned()))?;
            self.expect(b':', "a value")?;
            let is_list = self.peek()? == Some(b'[');
            if expect_list && is_list && LISTS.contains(&key.as_str()) {
                self.expect(b'[', "a list")?;
                return Ok(true);
            }
            self.skip_value()?;
            unused.push(format!("{key:?} beside the list"));
            match self.peek()? {
                Some(b',') => self.consume(),
                _ => {
                    self.expect(b'}', "the end of the object")?;
                    return Ok(false);
                }
            }
        }
    }

    /// Reads what follows a record: a comma, or the end of the list and what comes after it.
    fn separator(&mut self, unused: &mut Vec<String>) -> Result<()> {
        if self.layout == Layout::Sequence {
            return Ok(());
        }
        match self.peek()? {
            Some(b',') => self.consume(),
            Some(b']') => {
                // `next` meets the end of the file, or a further list.
                self.close(unused)?;
            }
            None => self.end_of_file().map(|_| ())?,
            Some(_) => return Err(self.broken("expected a comma between records".to_owned())),
        }
        Ok(())
    }

    /// Reads the end of a list, and after it the end of the object around it.
    fn close(&mut self, unused: &mut Vec<String>) -> Result<()> {
        self.consume();
        if self.layout == Layout::ListInObject {
            match self.peek()? {
                Some(b',') => {
                    self.consume();
                    self.field_with_list(unused, false)?;
                }
                _ => self.expect(b'}', "the end of the object")?,
            }
        }
        match self.peek()? {
            // Joined files: one list after another.
            Some(b'[') if self.layout == Layout::List => self.consume(),
            None => self.layout = Layout::Sequence,
            Some(_) => return Err(self.broken("expected the end of the file".to_owned())),
        }
        Ok(())
    }

    fn end_of_file(&self) -> Result<Option<Record>> {
        match self.layout {
            Layout::Sequence => Ok(None),
            _ => Err(self.broken("not JSON: the file ends within a list".to_owned())),
        }
    }

    /// Reads the bytes of the next value.
    fn value(&mut self) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        self.scan(|bytes| value.extend_from_slice(bytes))?;
        Ok(value)
    }

    fn skip_value(&mut self) -> Result<()> {
        self.scan(|_| ())
    }

    fn scan(&mut self, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.peek()?;
        let start = self.line;
        let (mut scan, mut is_empty) = (Scan::default(), true);
        loop {
            let buffer = fill(&mut self.reader).map_err(|source| self.file.read_error(source))?;
            let end = buffer.iter().position(|byte| scan.ends_before(*byte));
            let taken = end.unwrap_or(buffer.len());
            self.line += buffer[..taken].iter().filter(|byte| **byte == b'\n').count() as u64;
            take(&buffer[..taken]);
            is_empty &= taken == 0;
            let at_end = buffer.is_empty();
            self.reader.consume(taken);
            if end.is_none() && !at_end {
                continue;
            }
            if is_empty {
                return Err(self.broken("not JSON: expected a value".to_owned()));
            }
            if at_end && (scan.depth > 0 || scan.in_string) {
                let reason = "not JSON: the file ends within this record".to_owned();
                return Err(Place::line(self.file.clone(), start).broken(reason));
            }
            return Ok(());
        }
    }

    /// Skips white space and byte-order marks, and returns the next byte.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let buffer = fill(&mut self.reader).map_err(|source| self.file.read_error(source))?;
            match buffer.first() {
                None => return Ok(None),
                Some(b'\n') => self.line += 1,
                // The bytes of a mark begin no JSON value.
                Some(byte) if is_space(*byte) || [0xEF, 0xBB, 0xBF].contains(byte) => {}
                Some(byte) => return Ok(Some(*byte)),
            }
            self.consume();
        }
    }

    fn consume(&mut self) {
        self.reader.consume(1);
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        if self.peek()? != Some(byte) {
            return Err(self.broken(format!("not JSON: expected {what}")));
        }
        self.consume();
        Ok(())
    }

    fn broken(&self, reason: String) -> Error {
        Place::line(self.file.clone(), self.line).broken(reason)
    }
}

fn fill(reader: &mut Box<dyn BufRead + Send>) -> io::Result<&[u8]> {
    // A second call returns the buffer that the first one filled.
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}
