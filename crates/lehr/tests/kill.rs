//! Real processes that are killed or interrupted at random moments and resumed: the final weights
//! and moments are those of the undisturbed run, byte for byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::{Draws, finish, lehr, pretrain_args, run, weights_and_moments, write_text};

/// Steps of the run: more than all sessions before the last can make.
const STEPS: u64 = 500;
const KILLS: u64 = 20;
/// Lines read at most before a kill.
const LINES_MAX: u64 = 24;

/// Writes the data, and a recipe of a run with many checkpoints to be begun in `dir`.
fn prepare(dir: &Path) {
    write_text(dir, 300);
    let sets = ["checkpoint.every_steps=3", "sample.every_steps=40", "eval.every_steps=50"];
    let mut args = pretrain_args("unused", STEPS, &sets);
    args.push("--dry-run".to_owned());
    let mut command = lehr(dir);
    command.args(args);
    let ran = finish(command, b"");
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    fs::write(dir.join("recipe.toml"), ran.out).unwrap();
}

/// Begins the run `out`, or continues it.
fn spawn(dir: &Path, out: &str, more: &[&str]) -> Child {
    let mut command = lehr(dir);
    if dir.join(out).join("recipe.toml").exists() {
        command.args(["pretrain", "--resume", out]);
    } else {
        command.args(["pretrain", "recipe.toml", "--out", out]);
    }
    command.args(more).spawn().unwrap()
}

/// The bytes of weights and moments of an undisturbed run, and its losses by step.
fn undisturbed(dir: &Path) -> ([Vec<u8>; 2], Vec<(u64, f64)>) {
    let ran = run(dir, &["pretrain", "recipe.toml", "--out", "whole", "--threads", "2"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    (weights_and_moments(&dir.join("whole")), losses(&dir.join("whole")))
}

fn losses(run: &Path) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let number = |line: &serde_json::Value| (line["step"].as_u64(), line["loss"].as_f64());
    let parse = |line| match number(&serde_json::from_str(line).unwrap()) {
        (Some(step), Some(loss)) => (step, loss),
        other => panic!("{other:?} in the line {line}"),
    };
    text.lines().map(parse).collect()
}

#[test]
fn a_run_killed_twenty_times_ends_with_the_bytes_of_the_undisturbed_one() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    let want = undisturbed(dir);
    let mut draws = Draws(2026);
    for kill in 0..KILLS {
        let mut child = spawn(dir, "killed", &["--json"]);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // Each line is an event: a note while preparing, a step, a checkpoint.
        let n_lines = draws.below(LINES_MAX + 1) as usize;
        assert_eq!(stdout.lines().take(n_lines).count(), n_lines, "kill {kill}: the run ended");
        std::thread::sleep(Duration::from_micros(draws.below(4000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "kill {kill} came too late: {status}");
    }
    let ran = finish_resume(dir, "killed");
    assert_eq!(ran, Some(0));
    let run = dir.join("killed");
    assert!(weights_and_moments(&run) == want.0, "weights or moments differ");
    assert_eq!(losses(&run), want.1, "the written losses differ");
    let left: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "something is left behind: {left:?}");
}

fn finish_resume(dir: &Path, out: &str) -> Option<i32> {
    run(dir, &["pretrain", "--resume", out]).code
}

fn interrupt(child: &Child) {
    send(child, "-INT");
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_interrupted_run_saves_says_how_to_continue_and_loses_no_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    let want = undisturbed(dir);
    // While the data is prepared, at the first step, and later.
    for (sign, signal, code) in [
        ("run directory", "-INT", 130),
        ("training", "-TERM", 143),
        ("step ", "-INT", 130),
        ("step ", "-TERM", 143),
    ] {
        let mut child = spawn(dir, "stopped", &[]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with(sign)), "no line begins with {sign:?}");
        send(&child, signal);
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(code), "after {sign:?}: {rest:?}");
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let says = |text: &str| rest.iter().any(|line| line.contains(text));
        // The preparation of so little data may be over when the signal comes.
        let is_early = sign == "run directory" && says("interrupted before the first step");
        if !is_early {
            assert!(err.contains("stopping after this step"), "{err}");
            assert!(says("interrupted after step"), "after {sign:?}: {rest:?}");
        }
        assert!(says("continue with: lehr pretrain --resume stopped"), "{rest:?}");
    }
    assert_eq!(finish_resume(dir, "stopped"), Some(0));
    assert!(weights_and_moments(&dir.join("stopped")) == want.0, "weights or moments differ");
    assert_eq!(losses(&dir.join("stopped")), want.1);
}

#[test]
fn a_signal_while_much_data_is_prepared_ends_the_command_and_saves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    write_text(dir, 200_000);
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut child = spawn(dir, "early", &["--set", "tokenizer.vocab_size=4000"]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("run directory")));
        send(&child, signal);
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest:?}");
        let says = |text: &str| rest.iter().any(|line| line.contains(text));
        assert!(says("interrupted before the first step"), "{rest:?}");
        assert!(says("continue with: lehr pretrain --resume early"), "{rest:?}");
        assert_eq!(fs::read_dir(dir.join("early/checkpoints")).unwrap().count(), 0);
        assert!(!dir.join("early/metrics.jsonl").exists());
    }
}

#[test]
fn a_second_process_in_a_run_directory_is_refused_and_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    let mut child = spawn(dir, "shared", &["--set", "train.steps=100000"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step ")));
    let id = child.id().to_string();
    common::fails(dir, &["pretrain", "--resume", "shared"], &["shared is in use", &id]);
    send(&child, "-KILL");
    child.wait().unwrap();
    // The lock of a dead process is free.
    let mut child = spawn(dir, "shared", &[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("continued at step")));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn an_interrupted_run_speaks_json_if_it_was_asked_to() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    let mut child = spawn(dir, "json", &["--json"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("\"step\"") {
        assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
    }
    interrupt(&child);
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let events = common::json_lines(&text);
    let last = events.last().unwrap();
    assert_eq!(last["event"], "interrupted");
    assert_eq!(last["continue"], "lehr pretrain --resume json");
    assert!(events.iter().any(|e| e["event"] == "saved"), "{text}");
}

#[test]
fn the_reader_of_the_output_may_leave_and_the_run_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    prepare(dir);
    let mut child = spawn(dir, "unread", &[]);
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
    assert_eq!(losses(&dir.join("unread")).len() as u64, STEPS);
}
