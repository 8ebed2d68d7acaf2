//! Each rule of form finds what it is for, in made-up files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use xtask::tidy::{self, Source};

fn rust(text: &str) -> Vec<Source> {
    vec![Source::new("crates/a/src/lib.rs", text)]
}

#[test]
fn a_file_that_cargo_fmt_cannot_see_is_still_checked() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("good.rs"), "fn f() {}\n").unwrap();
    fs::write(root.path().join("hidden.rs"), "fn  g( ) { }\n").unwrap();
    let sources = tidy::sources(root.path()).unwrap();
    let problems = tidy::unformatted(root.path(), &sources).unwrap();
    assert!(
        problems.len() == 1 && problems[0].contains("hidden.rs: not formatted"),
        "{problems:?}"
    );

    fs::write(root.path().join("hidden.rs"), "fn g( {\n").unwrap();
    let problems = tidy::unformatted(root.path(), &sources).unwrap();
    assert!(problems.len() == 1 && problems[0].starts_with("rustfmt failed"), "{problems:?}");
}

#[test]
fn columns_are_characters_and_what_cannot_be_cut_may_be_longer() {
    let (fits, long) = ("é".repeat(97), "e".repeat(98));
    let text = format!("// {fits}\n// {long}\nlet x = \"driver\"; // {long}\n");
    assert_eq!(
        tidy::long_lines(&rust(&text)),
        [
            "crates/a/src/lib.rs:2: 101 columns, of at most 100",
            "crates/a/src/lib.rs:3: 119 columns, of at most 100",
        ]
    );
    let kernel = Source::new("a/kernel.cu", &format!("// {long}\n"));
    assert_eq!(tidy::long_lines(&[kernel]).len(), 1);
    let exempt = [
        format!("const R: &str = r\"{long}\";"),
        format!("    /// | `x` | {long} |"),
        format!("// https://example.org/{long}"),
        format!("    ($a:ident, {long}) => {{"),
    ];
    assert_eq!(tidy::long_lines(&rust(&exempt.join("\n"))), Vec::<String>::new());
    let guide = Source::new("README.md", &long.repeat(2));
    assert_eq!(tidy::long_lines(&[guide]), Vec::<String>::new());
}

#[test]
fn a_file_may_have_500_lines_and_tests_800() {
    let file = |path: &str, n: usize| Source::new(path, &"//\n".repeat(n));
    let sources = [
        file("a/src/x.rs", 500),
        file("a/src/y.rs", 501),
        file("a/src/k.cu", 501),
        file("a/src/tests.rs", 800),
        file("a/tests/z.rs", 801),
        file("docs/guide.md", 9000),
    ];
    assert_eq!(
        tidy::long_files(&sources),
        [
            "a/src/y.rs: 501 lines, of at most 500",
            "a/src/k.cu: 501 lines, of at most 500",
            "a/tests/z.rs: 801 lines, of at most 800",
        ]
    );
}

#[test]
fn a_function_may_have_70_lines_in_all() {
    let function =
        |head: &str, n: usize| format!("    {head} {{\n{}    }}\n", "//\n".repeat(n - 2));
    let good = function("pub(super) unsafe fn fits(\n        x: u8,\n    )", 68);
    let long = function("pub const fn long()", 71);
    let test = format!("    #[test]\n{}", function("fn is_a_test()", 90));
    let text = format!("impl A {{\n{good}{long}{test}    fn declared(&self);\n}}\n");
    assert_eq!(
        tidy::long_functions(&rust(&text)),
        ["crates/a/src/lib.rs:72: `long` has 71 lines, of at most 70"]
    );
}

#[test]
fn an_ignored_test_is_found() {
    let text = "#[test]\n#[ignore = \"slow\"]\nfn f() {\n}\n";
    assert_eq!(tidy::ignored_tests(&rust(text)), ["crates/a/src/lib.rs:2: an ignored test"]);
}

/// A test with the given lines.
fn test_of(lines: &str) -> Vec<Source> {
    rust(&format!("#[test]\nfn compares() {{\n{lines}\n    work();\n}}\n"))
}

#[test]
fn an_early_return_must_go_through_the_helper() {
    let hidden = [
        "    let Some(x) = std::env::var_os(\"X\") else { return };",
        "    let Some(x) = published() else {\n        return;\n    };",
        "    let x = match x {\n        None => return,\n    };",
    ];
    for lines in hidden {
        let problems = tidy::hidden_skips(&test_of(lines));
        assert!(problems.len() == 1 && problems[0].contains("`compares` returns"), "{problems:?}");
        assert_eq!(tidy::count_skips(&test_of(lines)), 0);
    }
    let counted = test_of("    let Some(x) = fixtures::path(\"X\") else { return };");
    assert_eq!(tidy::hidden_skips(&counted), Vec::<String>::new());
    assert_eq!(tidy::count_skips(&counted), 1);
    let by_device = test_of("    if !has_fp8() {\n        return;\n    }");
    assert_eq!(tidy::hidden_skips(&by_device), Vec::<String>::new());
    let helper = rust("fn not_a_test() {\n    return;\n}\n");
    assert_eq!(tidy::hidden_skips(&helper), Vec::<String>::new());
}

#[test]
fn an_operation_that_only_tests_call_is_found() {
    let ops = |name: &str| {
        let method = format!("    pub fn {name}(&self) -> Result<Self> {{\n        0\n    }}\n");
        let text = format!("impl Tensor {{\n{method}}}\n");
        Source::new(&format!("crates/lehr-tensor/src/ops/{name}/mod.rs"), &text)
    };
    let mut sources: Vec<_> = (0..20).map(|i| ops(&format!("op{i}"))).collect();
    let calls: Vec<_> = (0..20).map(|i| format!("x.op{i}(1);")).collect();
    let caller = |calls: &[String]| Source::new("crates/b/src/lib.rs", &calls.join("\n"));
    sources.push(caller(&calls));
    assert_eq!(tidy::unused_ops(&sources), Vec::<String>::new());

    // `op1` is a prefix of others, and its only callers are a test, a comment and a longer name.
    let mut without: Vec<_> = calls.iter().filter(|c| *c != "x.op1(1);").cloned().collect();
    without.push("// x.op1(1)".to_owned());
    without.push("map(Tensor::op11)".to_owned());
    *sources.last_mut().unwrap() = caller(&without);
    sources.push(Source::new("crates/lehr-tensor/src/ops/op1/tests.rs", "x.op1(1);"));
    let found = tidy::unused_ops(&sources);
    assert!(found.len() == 1 && found[0].contains("`Tensor::op1` has no caller"), "{found:?}");

    let few = tidy::unused_ops(&sources[..5]);
    assert!(few.last().unwrap().contains("5 operations found"), "{few:?}");
}

#[test]
fn private_words_are_found_in_guides_and_in_comments_of_held_crates() {
    let text = "//! All layers but for the last.\nlet x = \"but for\";\n/// Butter but fortune.\n";
    let held = Source::new("crates/lehr-data/src/lib.rs", text);
    let found = tidy::private_words(&[held]);
    assert!(
        found.len() == 1 && found[0].starts_with("crates/lehr-data/src/lib.rs:1:"),
        "{found:?}"
    );
    let guide = Source::new("docs/x.md", "A run goes on.\n| BAD: a run goes on |\n");
    let found = tidy::private_words(&[guide]);
    assert!(found.len() == 1 && found[0].starts_with("docs/x.md:1: \"goes on\""), "{found:?}");
}
