//! Options of data on the command line, and what is said of data.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use common::{fails, pretrain, run, succeeds};
use serde_json::json;

#[test]
fn bad_records_are_listed_or_skipped_as_the_recipe_says() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let talk =
        |i: usize| json!({"prompt": format!("q {i}"), "completion": "a", "url": 1}).to_string();
    let mut lines: Vec<String> = (0..30).map(talk).collect();
    lines[4] = "?".to_owned();
    lines[7] = json!({"prompt": "q", "completion": ""}).to_string();
    fs::write(dir.join("talks.jsonl"), lines.join("\n")).unwrap();
    let fit = ["finetune", "--model", "base", "--data", "talks.jsonl", "--dry-run"];
    let parts = ["2 records are bad", "line 5: not JSON", "line 8", "empty answer", "--skip-bad"];
    fails(dir, &fit, &parts);
    let skipped = run(dir, &[&fit[..], &["--skip-bad"]].concat());
    assert!(skipped.out.contains("skip_bad = true"), "{}", skipped.out);
    for part in ["2 bad records are left out", "line 5", "\"url\" of 28 records"] {
        assert!(skipped.err.contains(part), "{}", skipped.err);
    }
    fs::write(dir.join("chat.toml"), &skipped.out).unwrap();
    let from_file = succeeds(dir, &["finetune", "chat.toml", "--dry-run"]);
    assert!(from_file.contains("skip_bad = true"));
}

#[test]
fn a_path_that_no_recipe_can_name_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(OsStr::from_bytes(b"a\xFF.txt"));
    fs::write(&path, "text").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lehr"))
        .arg("pretrain")
        .arg("--data")
        .arg(&path)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("is not UTF-8"), "{err}");
}
