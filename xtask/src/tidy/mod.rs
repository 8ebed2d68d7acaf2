//! Form of the sources: what a reader relies on and no compiler checks.
//!
//! Each rule is a function from the files of a tree to its problems, one per line of output, so a
//! test can run it on a made-up tree. [`problems`] runs all of them on a real one.

mod ops;
mod rust;
mod shape;
mod skips;
mod words;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, markdown};

pub use ops::unused_ops;
pub use shape::{ignored_tests, long_files, long_functions, long_lines};
pub use skips::{count_skips, hidden_skips};
pub use words::private_words;

/// Endings of the files that have rules.
const ENDINGS: &[&str] = &["rs", "cu", "cuh", "h", "md"];

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path below the root, with `/` between folders.
    pub path: String,
    /// Content.
    pub text: String,
}

impl Source {
    /// A file with the given content.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is(&self, ending: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, found)| found == ending)
    }

    /// Whether the file holds tests only: integration tests, `tests.rs`, `…_tests.rs`.
    fn is_test(&self) -> bool {
        self.is("rs") && (self.path.contains("/tests/") || self.path.ends_with("tests.rs"))
    }
}

/// Runs every rule on the tree at `root`.
///
/// # Errors
/// If a file cannot be read or rustfmt does not start.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let sources = sources(root)?;
    let mut problems = unformatted(root, &sources)?;
    let rules = [
        long_lines,
        long_files,
        long_functions,
        ignored_tests,
        hidden_skips,
        unused_ops,
        private_words,
    ];
    problems.extend(rules.iter().flat_map(|rule| rule(&sources)));
    Ok(problems)
}

/// Reads all files below `root` that have rules, except those that programs made.
///
/// # Errors
/// If a file cannot be read or is not UTF-8.
pub fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in markdown::files_with(root, ENDINGS)? {
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        sources.push(Source { path, text });
    }
    Ok(sources)
}

/// Names the Rust files that rustfmt would change. Every file is given to rustfmt by name, because
/// `cargo fmt` follows `mod` items and cannot see those that a macro declares.
///
/// # Errors
/// If rustfmt does not start.
pub fn unformatted(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let files: Vec<_> = sources.iter().filter(|s| s.is("rs")).map(|s| &s.path).collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = Command::new("rustfmt");
    command.args(["--check", "--edition", "2024", "-l"]).args(files).current_dir(root);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("starting rustfmt: {e}"))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut problems: Vec<_> = listed
        .lines()
        .map(|path| format!("{}: not formatted, run rustfmt on it", below(root, path)))
        .collect();
    problems.dedup();
    if problems.is_empty() && !output.status.success() {
        let mut problem = "rustfmt failed".to_owned();
        let _ = write!(problem, ": {}", String::from_utf8_lossy(&output.stderr).trim());
        problems.push(problem);
    }
    Ok(problems)
}

fn below(root: &Path, path: &str) -> String {
    Path::new(path).strip_prefix(root).unwrap_or(Path::new(path)).display().to_string()
}
