//! Plain text files, cut into documents at paragraphs.

use super::document::Document;
use super::files::{Lines, SourceFile};
use crate::Result;

/// Upper bound of a document's size, as a multiple of the requested size.
const MOST: usize = 4;

/// Cuts a text file into documents of at least `document_bytes` bytes (0: one document).
///
/// A document ends before the first paragraph (after blank lines) at which it is long enough.
/// Without blank lines it ends at a line end, before it exceeds [`MOST`] times the requested size;
/// a longer line is cut at a space. A short remainder joins the document before it. The
/// concatenated documents equal the file.
pub(crate) struct TextDocuments {
    lines: Lines,
    least: usize,
    /// Pieces of the current line, in reverse.
    pieces: Vec<String>,
    current: String,
    after_blank: bool,
    pending: Option<String>,
    count: u64,
    done: bool,
}

impl TextDocuments {
    pub(crate) fn new(file: SourceFile, document_bytes: usize) -> Result<Self> {
        Ok(Self {
            lines: Lines::new(file)?,
            least: if document_bytes == 0 { usize::MAX } else { document_bytes },
            pieces: Vec::new(),
            current: String::new(),
            after_blank: false,
            pending: None,
            count: 0,
            done: false,
        })
    }

    fn next_piece(&mut self) -> Result<Option<String>> {
        if let Some(piece) = self.pieces.pop() {
            return Ok(Some(piece));
        }
        let Some((_, line)) = self.lines.next_line()? else { return Ok(None) };
        self.pieces = cut(line, self.least.saturating_mul(MOST));
        self.pieces.reverse();
        Ok(self.pieces.pop())
    }

    /// Reads until a document is complete and the one before it can be returned.
    fn advance(&mut self) -> Result<Option<String>> {
        while let Some(piece) = self.next_piece()? {
            let blank = piece.trim().is_empty();
            let at_paragraph = self.after_blank && !blank;
            let most = self.least.saturating_mul(MOST);
            let too_long = self.current.len().saturating_add(piece.len()) > most;
            let complete = self.current.len() >= self.least && (at_paragraph || too_long);
            self.after_blank = blank;
            if !complete {
                self.current.push_str(&piece);
                continue;
            }
            let finished = std::mem::replace(&mut self.current, piece);
            if let Some(before) = self.pending.replace(finished) {
                return Ok(Some(before));
            }
        }
        self.finish();
        Ok(self.pending.take())
    }

    fn finish(&mut self) {
        self.done = true;
        let rest = std::mem::take(&mut self.current);
        match &mut self.pending {
            Some(pending) if rest.len() < self.least => pending.push_str(&rest),
            Some(_) => self.pieces = vec![rest],
            None => self.pending = Some(rest),
        }
    }

    fn next_text(&mut self) -> Result<Option<String>> {
        if self.done { Ok(self.pieces.pop()) } else { self.advance() }
    }
}

impl Iterator for TextDocuments {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_text() {
            Err(error) => Some(Err(error)),
            Ok(None) => None,
            Ok(Some(text)) => {
                self.count += 1;
                let id = format!("{}#{}", self.lines.file().name, self.count);
                Some(Ok(Document { text, id, metadata: serde_json::Map::new() }))
            }
        }
    }
}

/// Cuts `line` into pieces of at most `most` bytes, after a space if possible.
fn cut(line: String, most: usize) -> Vec<String> {
    if line.len() <= most {
        return vec![line];
    }
    let mut pieces = Vec::new();
    let mut rest = line.as_str();
    while rest.len() > most {
        let edge = rest.floor_char_boundary(most).max(rest.ceil_char_boundary(1));
        let space = rest[..edge].rfind(' ').map(|space| space + 1);
        let (piece, after) = rest.split_at(space.unwrap_or(edge));
        pieces.push(piece.to_owned());
        rest = after;
    }
    pieces.push(rest.to_owned());
    pieces
}
