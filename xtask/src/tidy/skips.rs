//! Tests that may end before they have tested anything.

use super::Source;
use super::rust::{Function, functions};

/// Early returns that depend on the device, not on a file: a part of the device is absent.
const BY_DEVICE: &[&str] = &["has_fp8()", "driver_version", "FP8_CAPABILITY"];

/// How many tests use `fixtures::path`, and so return early where large files are missing. With
/// `LEHR_REQUIRE_FIXTURES=1` they fail there instead.
#[must_use]
pub fn count_skips(sources: &[Source]) -> usize {
    tests(sources).filter(|(_, test)| test.lines.iter().any(|l| uses_helper(l))).count()
}

/// Tests that return early without the helper `fixtures::path`, and so would pass unnoticed where
/// what they need is missing.
#[must_use]
pub fn hidden_skips(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for (source, test) in tests(sources) {
        for (i, line) in test.lines.iter().enumerate() {
            let is_literal = line.trim_start().starts_with('"');
            let ways = ["else { return }", "=> return,"];
            let returns = line.trim() == "return;" || ways.iter().any(|way| line.contains(way));
            let before = &test.lines[i.saturating_sub(2)..=i];
            let by_device = before.iter().any(|l| BY_DEVICE.iter().any(|d| l.contains(d)));
            if returns && !is_literal && !by_device && !before.iter().any(|l| uses_helper(l)) {
                problems.push(format!(
                    "{}:{}: `{}` returns early without fixtures::path",
                    source.path,
                    test.line + i,
                    test.name
                ));
            }
        }
    }
    problems
}

fn uses_helper(line: &str) -> bool {
    line.contains("fixtures::path(")
}

fn tests(sources: &[Source]) -> impl Iterator<Item = (&Source, Function<'_>)> {
    let rust = sources.iter().filter(|s| s.is("rs"));
    rust.flat_map(|s| functions(&s.text).into_iter().filter(|f| f.is_test).map(move |f| (s, f)))
}
