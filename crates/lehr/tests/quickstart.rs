//! `lehr quickstart`, interrupted and continued. Its plan is made small, and most of its
//! measurements are there already, as if it had come far before: all of it takes minutes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use common::{fails, lehr, run, snapshot, succeeds, write};
use serde_json::{Value, json};

const PRETRAIN_STEPS: u64 = 40;

/// Measurements that are taken as done: all but those whose models are kept.
fn earlier_results() -> BTreeMap<String, f64> {
    let mut results = BTreeMap::new();
    let mut put = |name: String| {
        let value = 0.5 + results.len() as f64 / 1000.0;
        results.insert(name, value);
    };
    for language in ["en", "zh"] {
        put(format!("sentiment/{language}/all/bag_of_words"));
        for seed in 1..=3 {
            put(format!("sentiment/{language}/few/bag_of_words/{seed}"));
            for (labels, start) in [
                ("few", "scratch"),
                ("few", "pretrained"),
                ("all", "scratch"),
                ("all", "pretrained"),
            ] {
                if (labels, start, seed) != ("all", "pretrained", 1) {
                    put(format!("sentiment/{language}/{labels}/{start}/{seed}"));
                }
            }
        }
    }
    for seed in 1..=3 {
        put(format!("dialogue/bits_per_byte/scratch/{seed}"));
        if seed != 1 {
            put(format!("dialogue/bits_per_byte/pretrained/{seed}"));
        }
    }
    results
}

fn read_results(dir: &Path) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(dir.join("results.jsonl")).unwrap();
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let json: Value = serde_json::from_str(line).unwrap();
        let (name, value) = (json["name"].as_str().unwrap(), json["value"].as_f64().unwrap());
        assert!(results.insert(name.to_owned(), value).is_none(), "{name} was measured twice");
    }
    results
}

#[test]
fn an_interrupted_quickstart_continues_to_its_report() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, out) = (scratch.path(), scratch.path().join("q"));
    let plan = json!({
        "seconds": 10.0, "step_seconds": 0.02, "book_bytes": 3000, "pretrain_steps": PRETRAIN_STEPS,
        "sentiment_steps": 2, "few_steps": 2, "dialogue_steps": 2,
    });
    write(&out, "plan.json", plan.to_string());
    let earlier = earlier_results();
    let lines: String =
        earlier.iter().map(|(n, v)| json!({ "name": n, "value": v }).to_string() + "\n").collect();
    // A crash cut the last line.
    write(&out, "results.jsonl", lines + "{\"name\":\"sentiment/en/maj");

    let mut child = lehr(dir).args(["quickstart", "--out", "q"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step ")), "no step");
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let says = |text: &str| rest.iter().any(|line| line.contains(text));
    assert!(says("continue with: lehr quickstart --out q"), "{rest:?}");
    assert!(out.join("base/checkpoints").is_dir(), "nothing was saved");
    assert!(!out.join("report.html").exists());

    let said = succeeds(dir, &["quickstart", "--out", "q"]);
    assert!(said.contains(", continued at step "), "{said}");
    for part in ["sentiment en, 200 labels", "sentiment zh, all labels", "dialogue: bits per byte"]
    {
        assert!(said.contains(part), "the table lacks {part:?}: {said}");
    }
    let results = read_results(&out);
    for (name, value) in &earlier {
        assert_eq!(results.get(name), Some(value), "{name} was measured again");
    }
    for name in [
        "pretrain/bits_per_byte",
        "sentiment/en/majority",
        "sentiment/en/all/pretrained/1",
        "sentiment/zh/all/pretrained/1",
        "dialogue/bits_per_byte/pretrained/1",
        "seconds",
    ] {
        assert!(
            results.get(name).is_some_and(|v| v.is_finite() && *v > 0.0),
            "{name}: {results:?}"
        );
    }
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["Pre-training", "Continuations", "Answers", "sentiment en"] {
        assert!(report.contains(part), "the report lacks {part:?}");
    }
    let steps = fs::read_to_string(out.join("base/metrics.jsonl")).unwrap().lines().count() as u64;
    assert_eq!(steps, PRETRAIN_STEPS);
    use_the_models(dir);

    // Asked again, it repeats no measurement.
    let (base, again) =
        (snapshot(&out.join("base")), run(dir, &["quickstart", "--out", "q", "--json"]));
    assert_eq!(again.code, Some(0), "{again:#?}");
    let [all] = &common::json_lines(&again.out)[..] else { panic!("{again:#?}") };
    assert_eq!(all["results"]["pretrain/bits_per_byte"], results["pretrain/bits_per_byte"]);
    assert!(snapshot(&out.join("base")) == base, "the base run was touched");
}

/// The commands the quickstart recommends at its end work.
fn use_the_models(dir: &Path) {
    succeeds(dir, &["chat", "q/chat", "-p", "Who are you?", "-n", "4"]);
    let labelled = succeeds(dir, &["classify", "q/sentiment", "-t", "what a wonderful film"]);
    assert_eq!(labelled.lines().count(), 1, "{labelled}");
    succeeds(dir, &["generate", "q/base", "-p", "It was", "-n", "4"]);
}

#[test]
fn impossible_times_places_and_plans_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    for seconds in ["5", "nan", "inf", "-3"] {
        let seconds = format!("--seconds={seconds}");
        fails(dir, &["quickstart", &seconds, "--out", "q"], &["--seconds", "expected 10 or more"]);
    }
    assert!(!dir.join("q").exists());
    write(dir, "file.txt", "not a folder");
    fails(dir, &["quickstart", "--out", "file.txt/q"], &["file.txt/q"]);
    write(dir, "q/plan.json", "{");
    fails(dir, &["quickstart", "--out", "q"], &["plan.json"]);
    assert_eq!(fs::read_to_string(dir.join("file.txt")).unwrap(), "not a folder");
}
