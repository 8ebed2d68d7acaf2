//! Phrases that read as translated, and private words, in what people read.

use super::Source;

/// Phrases, and what to write instead.
const PHRASES: &[(&str, &str)] = &[
    ("but for", "\"except\": \"but for\" also means \"without\""),
    ("of which", "end the sentence and begin one with the noun"),
    ("what is asked of", "name the input"),
    ("that is asked for", "\"requested\""),
    ("so that it be", "\"so it is\""),
    ("whoever", "name the caller"),
    ("goes on", "\"continues\""),
    ("go on", "\"continue\""),
    ("is taken up", "\"is resumed\""),
    ("looked at", "say what is done: read, compared, evaluated"),
    ("learnt label", "\"supervised token\", the field's term"),
    ("n_elsewise", "\"fallback\""),
    ("that_fits", "\"nearest supported\""),
    ("it beside", "name what is compared"),
    ("which of both", "name the choice"),
];

/// Where the phrases are looked for: guides, and the doc comments of these crates.
const HELD: &[&str] = &[
    "crates/lehr/",
    "crates/lehr-cuda/",
    "crates/lehr-data/",
    "crates/lehr-demo/",
    "crates/lehr-eval/",
    "crates/lehr-infer/",
    "crates/lehr-kernels/",
    "crates/lehr-model/",
    "crates/lehr-tensor/",
    "crates/lehr-train/",
    "crates/lehr-tokenizer/",
    "fuzz/",
    "xtask/",
];

/// Phrases of the list in Markdown and in doc comments.
#[must_use]
pub fn private_words(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let held = HELD.iter().any(|folder| source.path.starts_with(folder));
        if !(source.is("md") || source.is("rs") && held) {
            continue;
        }
        for (i, line) in source.text.lines().enumerate() {
            let shown = match source.is("md") {
                true => Some(line),
                false => line.trim_start().strip_prefix("//"),
            };
            // A guide may quote a phrase to warn of it.
            let Some(shown) = shown.filter(|l| !l.contains("BAD")) else { continue };
            let shown = shown.to_lowercase();
            for (phrase, instead) in PHRASES {
                if has_phrase(&shown, phrase) {
                    let path = &source.path;
                    problems.push(format!("{path}:{}: \"{phrase}\": {instead}", i + 1));
                }
            }
        }
    }
    problems
}

/// Whether the phrase occurs as whole words.
fn has_phrase(line: &str, phrase: &str) -> bool {
    line.match_indices(phrase).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + phrase.len()..].chars().next();
        let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
        ends(before) && ends(after)
    })
}
