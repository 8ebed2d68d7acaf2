//! Parts of Markdown files that the checks read.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// Folders of generated files.
const SKIPPED: &[&str] = &["target", "runs", "node_modules", "venv"];

/// Lists the Markdown files below `folder`, in order, without hidden folders.
///
/// # Errors
/// If a folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    files_with(folder, &["md"])
}

/// Lists the files below `folder` whose ending is one of `endings`, in order, without hidden
/// folders.
///
/// # Errors
/// If a folder cannot be read.
pub fn files_with(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let read = fs::read_dir(folder).map_err(|e| format!("reading {}: {e}", folder.display()))?;
    for entry in read {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !SKIPPED.contains(&&*name) {
                found.extend(files_with(&path, endings)?);
            }
        } else if path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Its text.
    pub text: &'a str,
    /// Whether it is inside a code block: between fences, or indented by four spaces after an
    /// empty line.
    pub code: bool,
}

/// The lines of a text. Fences themselves are left out.
#[must_use]
pub fn lines(text: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    let (mut indented, mut after_empty) = (false, true);
    for (i, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let ticks = &trimmed[..trimmed.len() - trimmed.trim_start_matches('`').len()];
        match fence {
            Some(open) if ticks.len() >= open.len() && trimmed == ticks => {
                fence = None;
                continue;
            }
            None if ticks.len() >= 3 => {
                fence = Some(ticks);
                continue;
            }
            _ => {}
        }
        let empty = trimmed.is_empty();
        indented = line.starts_with("    ") && (indented || after_empty);
        after_empty = empty || (after_empty && indented);
        found.push(Line { number: i + 1, text: line, code: fence.is_some() || indented });
    }
    found
}

/// Text with the content of its code spans replaced by spaces.
#[must_use]
pub fn without_code_spans(text: &str) -> String {
    let mut inside = false;
    let blank = |c: char| {
        inside ^= c == '`';
        if inside || c == '`' { ' ' } else { c }
    };
    text.chars().map(blank).collect()
}

/// Shell commands in code blocks: number of the first line, and text with continued lines joined
/// and comments and prompts removed.
#[must_use]
pub fn commands(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for line in lines(text).iter().filter(|l| l.code) {
        let command = line.text.trim();
        let command = command.strip_prefix("$ ").unwrap_or(command);
        let command = command.split(" #").next().unwrap_or(command).trim();
        let (command, continues) = match command.strip_suffix('\\') {
            Some(command) => (command.trim_end(), true),
            None => (command, false),
        };
        match found.last_mut() {
            Some((_, last)) if continued => {
                last.push(' ');
                last.push_str(command);
            }
            _ if command.is_empty() || command.starts_with('#') => {}
            _ => found.push((line.number, command.to_owned())),
        }
        continued = continues;
    }
    found
}
