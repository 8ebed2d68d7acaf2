//! Named entities from data to use: `lehr finetune`, `lehr tag`, `lehr eval`, `lehr convert`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{finish, lehr, one_json, pretrain, run, succeeds};
use serde_json::Value;

const NAMES: [&str; 4] = ["Ada Lovelace", "Bea", "Karl Friedrich Gauss", "Mo"];
const PLACES: [&str; 3] = ["Rome", "Fort Worth", "Ulm"];

/// Sentences with persons and places, as columns.
fn write_columns(path: &Path, n: usize) {
    let mut lines = String::new();
    for index in 0..n {
        let mut put = |text: &str, label: &str| {
            for (at, word) in text.split(' ').enumerate() {
                let tag = match (label, at) {
                    ("", _) => "O".to_owned(),
                    (label, 0) => format!("B-{label}"),
                    (label, _) => format!("I-{label}"),
                };
                writeln!(lines, "{word}\t{tag}").unwrap();
            }
        };
        put("the glass of", "");
        put(NAMES[index % 4], "PER");
        put("came from", "");
        put(PLACES[index % 3], "LOC");
        lines.push('\n');
    }
    std::fs::write(path, lines).unwrap();
}

/// A run that has learnt the sentences by heart.
fn trained(dir: &Path) {
    write_columns(&dir.join("names.conll"), 60);
    pretrain(dir, "base", &[]);
    let args = ["finetune", "--model", "base", "--data", "names.conll", "--out", "names"];
    let sets = [
        "--set",
        "train.steps=60",
        "--set",
        "schedule.warmup_steps=6",
        "--set",
        "optimizer.lr=0.02",
    ];
    let said = succeeds(dir, &[&args[..], &sets].concat());
    assert!(said.contains("F1 of entities 100.0%"), "{said}");
    assert!(said.contains("types: LOC, PER") && said.contains("next: lehr tag names"), "{said}");
}

#[test]
fn entities_are_learnt_found_scored_and_copied() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    trained(dir);
    let text = "the glass of Ada Lovelace came from Fort Worth";
    let found = one_json(&succeeds(dir, &["tag", "names", "--json", "-t", text]));
    let shown = |found: &Value| -> Vec<(String, String)> {
        let entities = found["entities"].as_array().unwrap().iter();
        let part = |e: &Value, key: &str| e[key].as_str().unwrap().to_owned();
        entities.map(|e| (part(e, "label"), part(e, "text"))).collect()
    };
    let expected = [("PER", "Ada Lovelace"), ("LOC", "Fort Worth")];
    assert_eq!(shown(&found), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    for entity in found["entities"].as_array().unwrap() {
        let at = |key: &str| entity[key].as_u64().unwrap() as usize;
        assert_eq!(entity["text"], text[at("start")..at("end")]);
        assert!((0.0..=1.0).contains(&entity["probability"].as_f64().unwrap()));
    }
    // From standard input, for people.
    let mut command = lehr(dir);
    command.args(["tag", "names"]);
    let ran = finish(command, format!("{text}\n{text}\n").as_bytes());
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines[0], lines.len()), (text, 6), "{ran:#?}");
    assert!(lines[1].starts_with("  PER\t") && lines[1].ends_with("\tAda Lovelace"), "{ran:#?}");

    // A file of columns, tagged again, is the same file.
    succeeds(dir, &["tag", "names", "--data", "names.conll", "--out", "again.conll"]);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("again.conll"), read("names.conll"));
    std::fs::write(dir.join("texts.jsonl"), format!("{}\n", serde_json::json!({"body": text})))
        .unwrap();
    let args =
        ["tag", "names", "--data", "texts.jsonl", "--text-field", "body", "--out", "found.jsonl"];
    succeeds(dir, &args);
    let written = one_json(&read("found.jsonl"));
    assert_eq!(written["entities"], found["entities"]);
    assert_eq!((&written["id"], &written["text"]), (&"texts.jsonl:1".into(), &text.into()));
    // What it writes is data again.
    let score = one_json(&succeeds(dir, &["eval", "names", "--data", "found.jsonl", "--json"]));
    assert_eq!((&score["all"]["f1"], &score["texts"]), (&1.0.into(), &1.into()));

    let score = one_json(&succeeds(dir, &["eval", "names", "--data", "names.conll", "--json"]));
    assert_eq!((&score["all"]["f1"], &score["strict_f1"]), (&1.0.into(), &1.0.into()));
    assert_eq!(score["by_type"]["PER"]["expected"], 60);
    let table = succeeds(dir, &["eval", "names", "--data", "names.conll"]);
    assert!(table.contains("PER") && table.contains("100.00"), "{table}");

    let said = succeeds(dir, &["convert", "names", "--to", "copy", "--format", "f32"]);
    assert!(said.contains("head, labels"), "{said}");
    let tag = |model: &str| succeeds(dir, &["tag", model, "--json", "-t", text]);
    assert_eq!(tag("copy"), tag("names"));
}

#[test]
fn what_does_not_fit_is_refused_with_a_hint() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    trained(dir);
    let refused = |args: &[&str], parts: &[&str]| {
        let ran = run(dir, args);
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(parts.iter().all(|part| ran.err.contains(part)), "{parts:?}: {ran:#?}");
    };
    refused(&["classify", "names", "-t", "a"], &["ForTokenClassification", "hint"]);
    refused(&["eval", "names", "--data", "names.conll", "--window", "9"], &["--window"]);
    refused(&["tag", "names", "-t", "a", "--out", "a.csv"], &[".jsonl", ".conll"]);
    let check = ["data", "check", "--model", "base", "--data", "names.conll"];
    refused(&[&check[..], &["--out", "x"]].concat(), &["trains nothing", "--out"]);
    let said = succeeds(dir, &[&check[..], &["--html", "data.html", "--examples", "2"]].concat());
    assert!(said.contains("⟦ Ada[B-PER]⟧") || said.contains("[B-PER]⟧"), "{said}");
    assert!(said.contains("are copies of others"), "{said}");
    let html = std::fs::read_to_string(dir.join("data.html")).unwrap();
    assert_eq!(html.matches("<dd").count(), 2);
    // The run says the same, and keeps it in its report.
    let report = std::fs::read_to_string(dir.join("names/report.html")).unwrap();
    assert!(report.contains("what is learnt is marked"));
    refused(&["tag", "base", "-t", "a"], &["not a model that tags words", "lehr finetune"]);
    std::fs::write(dir.join("bad.conll"), "a O\nb O\nc O\n\nd O\ne\n").unwrap();
    refused(&["eval", "names", "--data", "bad.conll"], &["line 6", "B-PER"]);
    std::fs::write(dir.join("other.conll"), "a O\nZoe B-ANIMAL\n").unwrap();
    refused(&["eval", "names", "--data", "other.conll"], &["ANIMAL", "PER"]);
    // Types that the head lacks, unless a new head is requested.
    let more = ["finetune", "--model", "names", "--data", "other.conll", "--out", "more"];
    let other: String = (0..40).map(|i| format!("a{i} O\nZoe B-ANIMAL\n\n")).collect();
    std::fs::write(dir.join("other.conll"), other).unwrap();
    refused(&more, &["ANIMAL", "new head"]);
    let sets = ["--new-head", "--set", "train.steps=2", "--set", "schedule.warmup_steps=1"];
    let said = succeeds(dir, &[&more[..], &sets].concat());
    assert!(said.contains("types: ANIMAL"), "{said}");
}
