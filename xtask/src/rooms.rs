//! Inside a crate the modules depend one way too.

use std::collections::HashMap;
use std::path::Path;

use crate::Result;
use crate::tidy::{Source, sources};

/// Crates and their top-level modules from the bottom up: each may use those before it.
const ROOMS: &[(&str, &[&str])] = &[(
    "crates/lehr-model/src/",
    &[
        "error",
        "spec",
        "prefix",
        "weights",
        "compute",
        "io",
        "adapt",
        "nn",
        "cache",
        "arch",
        "model",
        "outline",
        "classifier",
        "decode",
        "paged",
    ],
)];

/// Modules of the repository at `root` that use one above them.
///
/// # Errors
/// If a file cannot be read.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let sources = sources(root)?;
    Ok(ROOMS.iter().flat_map(|(folder, rooms)| of_crate(folder, rooms, &sources)).collect())
}

/// The same for one crate, whose files are those of `sources` below `folder`.
#[must_use]
pub fn of_crate(folder: &str, rooms: &[&str], sources: &[Source]) -> Vec<String> {
    let files: Vec<(&str, &Source)> = sources
        .iter()
        .filter(|source| source.path.ends_with(".rs"))
        .filter_map(|source| Some((source.path.strip_prefix(folder)?, source)))
        .collect();
    let root = files.iter().find(|(name, _)| *name == "lib.rs");
    let exported = root.map(|(_, source)| exports(&source.text)).unwrap_or_default();
    let floor_of = |room: &str| rooms.iter().position(|known| *known == room);
    let mut problems = Vec::new();
    for (name, source) in files.iter().filter(|(name, _)| *name != "lib.rs") {
        let room = name.split(['/', '.']).next().unwrap_or_default();
        let Some(floor) = floor_of(room) else {
            problems.push(format!("{}: `{room}` has no floor in xtask/src/rooms.rs", source.path));
            continue;
        };
        for used in names_after(&code(&source.text), "crate::") {
            let used_room = exported.get(used.as_str()).unwrap_or(&used);
            if let Some(used_floor) = floor_of(used_room).filter(|used| *used > floor) {
                let above = rooms[used_floor];
                problems.push(format!("{}: `{room}` uses `{used}` of `{above}`", source.path));
            }
        }
    }
    problems
}

/// The lines of code before the tests, without comments.
fn code(text: &str) -> String {
    let before = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    before.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// What `pub use room::{A, B};` gives at the root of a crate: names and their rooms.
fn exports(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    for part in code(text).split("pub use ").skip(1) {
        let statement = part.split(';').next().unwrap_or_default();
        let Some((room, _)) = statement.split_once("::") else { continue };
        for name in names_after(statement, &format!("{room}::")) {
            found.insert(name, room.to_owned());
        }
    }
    found
}

/// The first name of each path behind `prefix`, those in braces included.
fn names_after(text: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.push(first_name(rest));
            continue;
        };
        let (mut depth, mut from) = (0, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                ',' if depth == 0 => {
                    names.push(first_name(&list[from..i]));
                    from = i + 1;
                }
                '}' if depth == 0 => {
                    names.push(first_name(&list[from..i]));
                    break;
                }
                '}' => depth -= 1,
                _ => (),
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}
