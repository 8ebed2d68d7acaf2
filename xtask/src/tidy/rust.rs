//! Functions of formatted Rust files, found by their indentation.
//!
//! rustfmt puts the closing brace of an item at the indentation of its first line. So a function
//! ends at the first `}` that stands where its `fn` line begins.

/// A function with a body of its own lines.
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    /// Number of the line with `fn`, from 1.
    pub(super) line: usize,
    /// Lines from `fn` to the closing brace.
    pub(super) lines: Vec<&'a str>,
    /// Whether `#[test]` stands above it.
    pub(super) is_test: bool,
}

/// All functions of a file that rustfmt has formatted. Those on one line have no body here.
pub(super) fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = name(line) else { continue };
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let declared = lines[start..].iter().position(|l| l.ends_with([';', '{', '}']));
        if declared.is_none_or(|i| !lines[start + i].ends_with('{')) {
            continue;
        }
        let Some(last) = lines[start..].iter().position(|l| *l == end) else { continue };
        let above = lines[..start].iter().rev().map(|l| l.trim_start());
        let is_test = above.take_while(|l| l.starts_with("#[") || l.starts_with("//"));
        let is_test = is_test.clone().any(|l| l == "#[test]");
        let lines = lines[start..=start + last].to_vec();
        found.push(Function { name, line: start + 1, lines, is_test });
    }
    found
}

/// The name of the function that a line begins to declare.
fn name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    loop {
        match words.next()? {
            "fn" => break,
            "const" | "unsafe" | "async" | "extern" | "\"C\"" => {}
            word if word.starts_with("pub") || word == "super)" || word == "crate)" => {}
            _ => return None,
        }
    }
    let end = |c: char| !c.is_alphanumeric() && c != '_';
    words.next()?.split(end).next().filter(|name| !name.is_empty())
}
