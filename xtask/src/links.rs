//! Paths in Markdown files: every one of them exists.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Result, markdown};

/// Folders at the root. A path that begins with one of them, anywhere in the text, must exist.
const FOLDERS: &[&str] =
    &["crates/", "configs/", "docs/", "tools/", "xtask/", "data/", ".ci/", ".cargo/"];

/// Returns what is wrong in the Markdown files below `root`.
///
/// # Errors
/// If a file cannot be read.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in markdown::files(root)? {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let folder = file.parent().unwrap_or(root);
        for (line, path) in broken(root, folder, &text) {
            let file = file.strip_prefix(root).unwrap_or(&file).display();
            problems.push(format!("{file}:{line}: {path} does not exist"));
        }
    }
    Ok(problems)
}

/// Returns the missing paths of a text in `folder`, with their line numbers.
fn broken(root: &Path, folder: &Path, text: &str) -> Vec<(usize, String)> {
    let mut broken = Vec::new();
    for line in markdown::lines(text) {
        let mut paths: Vec<(String, PathBuf)> = Vec::new();
        for path in mentioned(line.text) {
            // A README may mention the folders beside it.
            let full = [root.join(&path), folder.join(&path)].into_iter().find(|p| p.exists());
            let full = full.unwrap_or_else(|| root.join(&path));
            paths.push((path, full));
        }
        if !line.code {
            for target in link_targets(line.text) {
                let full = folder.join(&target);
                paths.push((target, full));
            }
        }
        let missing = paths.into_iter().filter(|(_, full)| !full.exists());
        broken.extend(missing.map(|(path, _)| (line.number, path)));
    }
    broken.dedup();
    broken
}

/// Targets of `[text](target)` that are paths, without `#section`.
fn link_targets(line: &str) -> Vec<String> {
    let line = markdown::without_code_spans(line);
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let paths = targets.map(|t| t.split('#').next().unwrap_or(t));
    paths
        .filter(|t| !t.is_empty() && !t.contains("://") && !t.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

fn is_path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-./+".contains(c)
}

/// Returns the paths that begin with a folder of the root. For a pattern such as
/// `configs/<name>.toml` it returns the folder before the pattern.
fn mentioned(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for (start, _) in line.match_indices(folder) {
            let before = &line[..start];
            let before = before.strip_suffix("./").filter(|b| !b.ends_with('.')).unwrap_or(before);
            if before.ends_with(is_path_char) {
                continue;
            }
            let rest = &line[start..];
            let end = rest.find(|c| !is_path_char(c)).unwrap_or(rest.len());
            let (mut path, after) = rest.split_at(end);
            if after.starts_with(['<', '{', '*', '$', '[', '…']) || path.ends_with("...") {
                path = &path[..=path.rfind('/').unwrap_or(path.len() - 1)];
            }
            found.push(path.trim_end_matches(['.', '-']).to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{link_targets, mentioned};

    #[test]
    fn paths_are_found_in_running_text_and_commands_of_any_language() {
        let cases = [
            ("see `crates/a/src/lib.rs`.", vec!["crates/a/src/lib.rs"]),
            ("lehr pretrain ./configs/tiny.toml --set x=1", vec!["configs/tiny.toml"]),
            ("用configs/tiny.toml。见docs/", vec!["configs/tiny.toml", "docs/"]),
            ("ends with docs/a.md.", vec!["docs/a.md"]),
            ("`configs/<name>.toml`, `data/{a,b}`", vec!["configs/", "data/"]),
            ("configs/... and configs/*.toml", vec!["configs/", "configs/"]),
            ("https://example.org/docs/a, ../docs/a, mydata/x", vec![]),
        ];
        for (line, want) in cases {
            assert_eq!(mentioned(line), want, "{line}");
        }
    }

    #[test]
    fn link_targets_are_paths_without_sections() {
        let line = "[a](b/c.md#d) [e](https://f.org) [g](#h) ![i](j.png \"k\") `[l](m)`";
        assert_eq!(link_targets(line), ["b/c.md", "j.png"]);
    }
}
