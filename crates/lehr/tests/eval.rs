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
    says("nowhere.txt", &[], &["reading nowhere.txt"]);
    fs::write(dir.join("bytes"), [b'a', 0xff]).unwrap();
    says("bytes", &[], &["bytes", "byte 1 is not UTF-8"]);
    fs::write(dir.join("short"), "a").unwrap();
    says("short", &[], &["it has 1 tokens"]);
    fs::write(dir.join("empty"), "").unwrap();
    says("empty", &[], &["it has 0 tokens"]);
    says("text.txt", &["--window", "65"], &["windows of 65", "context of 64"]);
    says("text.txt", &["--window", "8", "--stride", "8"], &["each 8 after"]);
    says("text.txt", &["--stride", "0"], &["each 0 after"]);
    fails(dir, &["eval", "nowhere", "--data", "text.txt"], &["nowhere"]);
}
