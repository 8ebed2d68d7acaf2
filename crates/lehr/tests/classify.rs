//! Classification from data to use: `lehr finetune`, `lehr classify`, `lehr eval`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::{fails, finish, json_lines, lehr, one_json, pretrain, run, succeeds, write_labelled};
use serde_json::Value;

#[test]
fn labels_are_learnt_and_classify_gives_them_with_probabilities() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_labelled(dir, 60);
    pretrain(dir, "base", &[]);
    let args = ["finetune", "--model", "base", "--data", "labelled.jsonl", "--out", "labels"];
    let sets = [
        "--set",
        "train.steps=60",
        "--set",
        "schedule.warmup_steps=6",
        "--set",
        "optimizer.lr=0.02",
    ];
    let said = succeeds(dir, &[&args[..], &sets].concat());
    assert!(said.contains("accuracy") && said.contains("next: lehr classify labels"), "{said}");
    let mut command = lehr(dir);
    command.args(["classify", "labels", "--json"]);
    let lines = "the glass came out lovely.\nthe glass came out cracked.\n";
    let ran = finish(command, lines.as_bytes());
    let found = json_lines(&ran.out);
    assert_eq!(found.len(), 2, "{ran:#?}");
    for answer in &found {
        let all = answer["probabilities"].as_object().unwrap();
        assert_eq!(all.len(), 2);
        let sum: f64 = all.values().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{answer}");
        let label = answer["label"].as_str().unwrap();
        assert!(all.values().all(|p| p.as_f64() <= all[label].as_f64()), "{answer}");
    }
    assert_eq!([&found[0]["label"], &found[1]["label"]], ["good", "bad"]);
    let shown =
        succeeds(dir, &["classify", "labels", "-t", "it came out cracked.", "-t", "lovely"]);
    assert!(shown.starts_with("bad\t") && shown.lines().count() == 2, "{shown}");
    files_are_labelled_and_scored(dir);
    let long = run(dir, &["classify", "labels", "-t", &"glass 1234 ".repeat(60)]);
    assert!(long.code == Some(0) && long.err.contains("their ends are cut"), "{long:#?}");
}

/// Labels of files with the other fields of their records, and the score of a classifier.
fn files_are_labelled_and_scored(dir: &Path) {
    let lines = [
        r#"{"body": "the glass came out lovely.", "label": "good", "page": 7}"#,
        r#"{"body": "the \"glass\", came out cracked.", "label": "good", "page": 8}"#,
    ];
    fs::write(dir.join("few.jsonl"), lines.join("\n")).unwrap();
    let data = ["--data", "few.jsonl", "--text-field", "body"];
    succeeds(dir, &[&["classify", "labels", "--out", "few.out.jsonl"], &data[..]].concat());
    let found = json_lines(&fs::read_to_string(dir.join("few.out.jsonl")).unwrap());
    assert_eq!([&found[0]["label"], &found[1]["label"]], ["good", "bad"]);
    assert_eq!([&found[1]["given_label"], &found[1]["page"]], [&Value::from("good"), &8.into()]);
    assert_eq!(found[1]["id"], "few.jsonl:2");
    let mut command = lehr(dir);
    command.args(["classify", "labels", "--out", "few.csv"]).args(data);
    let ran = finish(command, b"");
    assert!(ran.err.contains("field \"page\" of 2 records"), "{ran:#?}");
    let table = fs::read_to_string(dir.join("few.csv")).unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[0], "text,label,p(bad),p(good)");
    assert!(rows[2].starts_with("\"the \"\"glass\"\", came out cracked.\",bad,"), "{table}");
    let score = one_json(&succeeds(dir, &[&["eval", "labels", "--json"], &data[..]].concat()));
    assert_eq!((&score["accuracy"], &score["texts"]), (&0.5.into(), &2.into()));
    assert_eq!(score["confusion"], serde_json::json!([[0, 0], [1, 1]]));
    assert_eq!(score["mistakes"][0]["label"], "bad");
    let shown = succeeds(dir, &["eval", "labels", "--data", "labelled.jsonl"]);
    assert!(shown.contains("accuracy 100.00 %") && shown.contains("given:"), "{shown}");
    let args = ["eval", "labels", "--data", "few.jsonl", "--stride", "4"];
    fails(dir, &args, &["classifies texts", "--stride"]);
    fs::write(dir.join("other.jsonl"), r#"{"text": "a", "label": "fine"}"#).unwrap();
    fails(dir, &["eval", "labels", "--data", "other.jsonl"], &["fine", "bad, good"]);
}
