//! Lengths of lines, files and functions, and tests that never run.

use super::Source;
use super::rust::functions;

/// Columns of a line, at most.
const COLUMNS: usize = 100;
/// Lines of a source file, at most.
const LINES: usize = 500;
/// Lines of a file of tests, at most.
const TEST_LINES: usize = 800;
/// Lines of a function, at most, its `fn` line and closing brace included.
const FUNCTION_LINES: usize = 70;

/// Files that may be longer, and why.
const WHOLE: &[(&str, &str)] =
    &[("emulator/shim.h", "all of CUDA that the emulated GPU has, which is compiled as one file")];

/// Longer functions that were there before the rule, by the end of their path. None is added, and
/// one that has become short leaves the list.
const LONG: &[(&str, &str)] = &[
    // One loop in registers, which calls would spill.
    ("linear_q/cpu/decode.rs", "add"),
    ("lehr-train/src/fit.rs", "fit_pretrain"),
    ("lehr-train/src/fit.rs", "fit_finetune"),
    ("lehr-train/src/recipe/parts.rs", "validate"),
];

/// Lines of code and kernels longer than 100 characters.
///
/// What loses its meaning when it is cut may be longer: a regular expression (a raw string), a
/// URL, a row of a table in a comment, and the head of a macro arm, which rustfmt leaves alone.
#[must_use]
pub fn long_lines(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|s| !s.is("md")) {
        for (i, line) in source.text.lines().enumerate() {
            let n = line.chars().count();
            if n > COLUMNS && !is_uncut(line) {
                let path = &source.path;
                problems.push(format!("{path}:{}: {n} columns, of at most {COLUMNS}", i + 1));
            }
        }
    }
    problems
}

fn is_uncut(line: &str) -> bool {
    let trimmed = line.trim_start();
    let comment = trimmed.trim_start_matches(['/', '!']);
    let is_table = comment.len() < trimmed.len() && comment.trim_start().starts_with('|');
    let is_macro_arm = trimmed.starts_with("($") && trimmed.ends_with("=> {");
    is_table || is_macro_arm || has_raw_string(trimmed) || trimmed.contains("https://")
}

/// Whether `r"`, `r#"` or `r##"` occurs, and not as the end of a word.
fn has_raw_string(line: &str) -> bool {
    let opens = ["r\"", "r#\"", "r##\""].into_iter().flat_map(|open| line.match_indices(open));
    opens.into_iter().any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric()))
}

/// Rust files and kernels longer than 500 lines, tests longer than 800.
#[must_use]
pub fn long_files(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|s| !s.is("md")) {
        let (n, limit) =
            (source.text.lines().count(), if source.is_test() { TEST_LINES } else { LINES });
        let whole = WHOLE.iter().any(|(path, _)| source.path.ends_with(path));
        if n > limit && !whole {
            problems.push(format!("{}: {n} lines, of at most {limit}", source.path));
        }
    }
    problems
}

/// Functions longer than 70 lines, except tests.
#[must_use]
pub fn long_functions(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|s| s.is("rs") && !s.is_test()) {
        for function in functions(&source.text).iter().filter(|f| !f.is_test) {
            let n = function.lines.len();
            if n > FUNCTION_LINES && !is_listed(source, function.name) {
                problems.push(format!(
                    "{}:{}: `{}` has {n} lines, of at most {FUNCTION_LINES}",
                    source.path, function.line, function.name
                ));
            }
        }
        problems.extend(stale(source));
    }
    problems
}

fn is_listed(source: &Source, name: &str) -> bool {
    LONG.iter().any(|(path, long)| source.path.ends_with(path) && *long == name)
}

/// Entries of [`LONG`] for a file in which no function of that name is long any more.
fn stale(source: &Source) -> Vec<String> {
    let functions = functions(&source.text);
    let is_long =
        |name: &str| functions.iter().any(|f| f.name == name && f.lines.len() > FUNCTION_LINES);
    let listed = LONG.iter().filter(|(path, _)| source.path.ends_with(path));
    let stale = listed.filter(|(_, name)| !is_long(name));
    stale
        .map(|(path, name)| format!("{path}: `{name}` is short now: remove it from LONG"))
        .collect()
}

/// Tests that are compiled and never run.
#[must_use]
pub fn ignored_tests(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|s| s.is("rs")) {
        for (i, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with("#[ignore") {
                problems.push(format!("{}:{}: an ignored test", source.path, i + 1));
            }
        }
    }
    problems
}
