//! `lehr eval`: what a text costs a model, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs;

use common::{fails, json_lines, pretrain, run, succeeds};
use serde_json::Value;

fn eval(dir: &std::path::Path, more: &[&str]) -> Value {
    let args = [&["eval", "base", "--data", "sample.txt", "--json"], more].concat();
    json_lines(&succeeds(dir, &args)).remove(0)
}

#[test]
fn every_token_is_scored_once_whatever_the_windows() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let text = "glass 17 and glass 18; déjà vu, 玻璃。 ".repeat(20);
    fs::write(dir.join("sample.txt"), &text).unwrap();
    // The model's context is 64.
    let whole = eval(dir, &[]);
    let n = whole["tokens"].as_u64().unwrap();
    for sets in [["--window", "64", "--stride", "1"], ["--window", "7", "--stride", "6"]] {
        let other = eval(dir, &sets);
        assert_eq!(other["tokens"], n);
        assert_eq!(other["bytes"], whole["bytes"]);
        assert_ne!(other["nll"], whole["nll"]);
    }
    // The first token has nothing before it; its bytes do not count either.
    assert!(whole["bytes"].as_u64().unwrap() < text.len() as u64);
    let (nll, ppl) = (whole["nll"].as_f64().unwrap(), whole["perplexity"].as_f64().unwrap());
    assert!((ppl.ln() * n as f64 / nll - 1.0).abs() < 1e-9);
    let bytes = whole["bytes"].as_f64().unwrap();
    let bits = whole["bits_per_byte"].as_f64().unwrap();
    assert!((bits * bytes * 2f64.ln() / nll - 1.0).abs() < 1e-9);
    // Rounded weights change little, and 8 bits less than 4.
    let error = |format: &str| {
        let other = eval(dir, &["--weights", format])["nll"].as_f64().unwrap();
        (other / nll - 1.0).abs()
    };
    let (f32_error, bf16, q8, q4) = (error("f32"), error("bf16"), error("q8_0"), error("q4_0"));
    assert!(f32_error == 0.0 && bf16 > 0.0 && q4 > 0.0, "{f32_error} {bf16} {q4}");
    assert!(q8 < 0.01 && q4 < 0.05, "{q8} {q4}");
    assert!(succeeds(dir, &["eval", "base", "--data", "sample.txt"]).contains("bits per byte"));
    // Rows of this model are no whole blocks of 256 numbers; then that is said.
    let says_so = |format: &str| {
        let args = ["eval", "base", "--data", "sample.txt", "--weights", format];
        run(dir, &args).err.contains("the nearest whose blocks fill their rows: ")
    };
    assert!(says_so("q4_k") && !says_so("bf16"));
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let says = |name: &str, more: &[&str], says: &[&str]| {
        fails(dir, &[&["eval", "base", "--data", name], more].concat(), says);
    };
    says("nowhere.txt", &[], &["reading \"nowhere.txt\""]);
    fs::write(dir.join("bytes"), [b'a', 0xff]).unwrap();
    says("bytes", &[], &["bytes", "line 1 is not UTF-8", "offset 1"]);
    fs::write(dir.join("short"), "a").unwrap();
    says("short", &[], &["it has 1 tokens"]);
    fs::write(dir.join("empty"), "").unwrap();
    says("empty", &[], &["it has 0 tokens"]);
    says("text.txt", &["--window", "65"], &["windows of 65", "context of 64"]);
    says("text.txt", &["--window", "8", "--stride", "8"], &["each 8 after"]);
    says("text.txt", &["--stride", "0"], &["each 0 after"]);
    fails(dir, &["eval", "nowhere", "--data", "text.txt"], &["nowhere"]);
}

#[test]
fn records_marks_and_folders_are_scored_as_their_texts() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let eval = |name: &str| {
        json_lines(&succeeds(dir, &["eval", "base", "--data", name, "--json"])).remove(0)
    };
    let (one, two) = ("glass 17 and \"glass\" 18\n", "déjà vu, 玻璃。");
    fs::write(dir.join("one.txt"), one).unwrap();
    fs::write(dir.join("two.txt"), two).unwrap();
    let sum =
        |key: &str| eval("one.txt")[key].as_f64().unwrap() + eval("two.txt")[key].as_f64().unwrap();
    let (nll, bytes) = (sum("nll"), sum("bytes"));
    let record = |text: &str| serde_json::json!({"id": 1, "text": text}).to_string();
    fs::write(dir.join("a.jsonl"), format!("{}\n{}\n", record(one), record(two))).unwrap();
    let quoted = one.replace('"', "\"\"");
    fs::write(dir.join("a.csv"), format!("n,text\n1,\"{quoted}\"\n2,\"{two}\"\n")).unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    fs::write(dir.join("folder/one.txt"), format!("\u{feff}{one}")).unwrap();
    fs::write(dir.join("folder/two.txt"), two).unwrap();
    for name in ["a.jsonl", "a.csv", "folder"] {
        let found = eval(name);
        let error = found["nll"].as_f64().unwrap() / nll - 1.0;
        assert!(error.abs() < 1e-12, "{name}: {error}");
        assert_eq!(found["bytes"].as_f64().unwrap(), bytes, "{name}");
        assert_eq!(found["documents"], 2, "{name}");
    }
    let said = run(dir, &["eval", "base", "--data", "a.jsonl"]).err;
    assert!(!said.contains("\"text\""), "{said}");
    fs::write(dir.join("bad.jsonl"), format!("{}\n?\n{{}}\n", record(one))).unwrap();
    fails(dir, &["eval", "base", "--data", "bad.jsonl"], &["2 records", "line 2", "line 3"]);
    let skipped = run(dir, &["eval", "base", "--data", "bad.jsonl", "--skip-bad"]);
    assert!(skipped.err.contains("2 bad records are left out"), "{}", skipped.err);
}
