//! The checks find what they are for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use serde_json::json;
use xtask::{arrows, links, markdown, readme};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a path in a folder")).expect("a folder");
    fs::write(path, text).expect("a file");
}

#[test]
fn a_dependency_against_the_arrows_is_found_in_every_section() {
    let package = |name: &str, uses: &[(&str, Option<&str>)]| {
        let uses: Vec<_> = uses.iter().map(|(n, k)| json!({"name": n, "kind": k})).collect();
        json!({"name": name, "dependencies": uses})
    };
    let check =
        |packages: &[serde_json::Value]| arrows::of_metadata(&json!({"packages": packages}));
    let tensor = package("lehr-tensor", &[("serde_json", None)]);
    let good = package("lehr-model", &[("lehr-tensor", None)]);
    assert_eq!(check(&[tensor.clone(), good.clone()]), Vec::<String>::new());

    let bad = package("lehr-tensor", &[("lehr-model", Some("dev"))]);
    let problems = check(&[bad, good]);
    assert_eq!(
        problems,
        ["lehr-tensor uses lehr-model (dev), but may use lehr-kernels, lehr-cuda"]
    );

    let kernels = package("lehr-kernels", &[("lehr-tensor", None)]);
    let problems = check(&[kernels, tensor.clone()]);
    assert_eq!(problems, ["lehr-kernels uses lehr-tensor, but may use no crate of ours"]);

    let data = package("lehr-data", &[("lehr-tensor", None)]);
    let problems = check(&[tensor, data]);
    assert_eq!(problems, ["lehr-data uses lehr-tensor, but may use lehr-tokenizer"]);

    assert!(check(&[package("lehr-new", &[])])[0].contains("lehr-new has no arrows"));
    assert!(!check(&[]).is_empty());
}

#[test]
fn a_missing_path_is_found_with_its_file_and_line() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "docs/there.md", "[up](../README.md#x) [beside](gone.md)\n");
    write(root, "configs/tiny.toml", "");
    write(root, "README.md", "`configs/tiny.toml`\n\n    lehr pretrain configs/gone.toml\n");
    write(root, "target/x.md", "`docs/nothing`");
    write(root, "crates/a/README.md", "`docs/there.md`, `crates/a/src/<op>/mod.rs`\n");
    assert_eq!(
        links::problems(root).unwrap(),
        [
            "README.md:3: configs/gone.toml does not exist",
            "crates/a/README.md:1: crates/a/src/ does not exist",
            "docs/there.md:1: gone.md does not exist",
        ]
    );
}

#[test]
fn commands_are_joined_and_freed_of_prompts_and_comments() {
    let text = "text\n```sh\n$ lehr a \\\n    --b c  # why\n# alone\n\nlehr d\n```\nlehr not \
                code\n\n    lehr e\n";
    let commands = markdown::commands(text);
    assert_eq!(
        commands,
        [(3, "lehr a --b c".to_owned()), (7, "lehr d".to_owned()), (11, "lehr e".to_owned())]
    );
}

/// The help of a program with `run` and `data check`.
#[expect(clippy::unnecessary_wraps, reason = "the checks ask for a function that may fail")]
fn help(path: &[String]) -> xtask::Result<Option<String>> {
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let text = match path.as_slice() {
        [] => {
            "Usage\n\nCommands:\n  run   Runs\n  data  Data\n\nOptions:\n  -h, --help  Print help\n"
        }
        ["run"] => {
            "Usage\n\nOptions:\n  -s, --set <KEY>  Set. See --other\n      --json[=<X>]  JSON\n"
        }
        ["data"] => "Usage\n\nCommands:\n  check\n          Checks\n",
        ["data", "check"] => {
            "Usage\n\nOptions:\n      --out <DIR>\n          Where. --in is no option\n"
        }
        _ => return Ok(None),
    };
    Ok(Some(text.to_owned()))
}

fn readme_problems(english: &str, chinese: &str, guide: &str) -> Vec<String> {
    let root = tempfile::tempdir().expect("a scratch folder");
    let block = |text: &str| format!("```sh\n{text}\n```\n`cargo test --release --workspace`\n");
    write(root.path(), "README.md", &block(english));
    write(root.path(), "README.zh.md", &block(chinese));
    write(root.path(), "docs/guide.md", &block(guide));
    readme::problems_with(root.path(), &mut help).expect("readable files")
}

#[test]
fn commands_that_the_program_accepts_are_no_problem() {
    let start = "cargo build --release\nlehr run a.toml --set x=-1 -s y=2";
    let guide = "X=1 ./target/release/lehr data check --out=d | lehr run - --json && lehr --help\n\
                 cargo run --release -p lehr -- run --json\necho lehr run --unknown > lehr.txt";
    assert_eq!(readme_problems(start, &start.replace("toml ", "toml  # 中文\n"), guide).len(), 1);
    let chinese = format!("{start} # 中文");
    assert_eq!(readme_problems(start, &chinese, guide), Vec::<String>::new());
}

#[test]
fn a_command_that_the_program_does_not_accept_is_found() {
    let start = "lehr run a\nlehr run b";
    let cases = [
        ("lehr walk", "has no command `walk`"),
        ("lehr data clean", "`lehr data` has no command `clean`"),
        ("lehr run --other", "`lehr run` has no option `--other`"),
        ("lehr data check --in x", "has no option `--in`"),
        ("lehr run -x", "has no option `-x`"),
        ("a && cargo run -p lehr -- run --no", "has no option `--no`"),
    ];
    for (guide, want) in cases {
        let problems = readme_problems(start, start, guide);
        assert!(problems.len() == 1 && problems[0].contains(want), "{guide}: {problems:?}");
        assert!(problems[0].starts_with("docs/guide.md:2: "), "{problems:?}");
    }
}

#[test]
fn readmes_that_start_differently_or_are_missing_are_found() {
    let problems = readme_problems("lehr run a\nlehr run b", "lehr run a\nlehr run c", "");
    assert!(problems.len() == 1 && problems[0].contains("same 2 commands"), "{problems:?}");
    assert_eq!(readme_problems("lehr run a", "lehr run a", "").len(), 1);

    let empty = tempfile::tempdir().unwrap();
    let problems = readme::problems_with(empty.path(), &mut help).unwrap();
    assert_eq!(
        problems,
        ["README.md is missing or not text", "README.zh.md is missing or not text"]
    );
}
