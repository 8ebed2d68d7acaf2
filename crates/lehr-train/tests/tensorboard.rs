//! The event files of a run, read by a decoder that shares nothing with the writer: they hold what
//! `metrics.jsonl` and `samples.jsonl` hold, each step once, also after an interruption.
//!
//! That TensorBoard's own reader finds the same is checked by `tools/golden/tensorboard_events.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Watch, gpt2, recipe, run_watched};
use lehr_train::recipe::ObjectiveKind;
use lehr_train::{Recipe, read_metrics};

/// The fields of a message: number, and value or bytes.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let n = bytes.iter().position(|byte| *byte < 0x80).unwrap() + 1;
    let (number, rest) = bytes.split_at(n);
    *bytes = rest;
    number.iter().rev().fold(0, |value, byte| value * 128 + u64::from(byte % 128))
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let n = match key % 8 {
            0 => {
                found.push((key / 8, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        let (value, rest) = bytes.split_at(n);
        bytes = rest;
        found.push((key / 8, Field::Bytes(value)));
    }
    found
}

/// The bytes of the fields with this number.
fn all(bytes: &[u8], number: u64) -> Vec<&[u8]> {
    let of = |(n, field)| match field {
        Field::Bytes(bytes) if n == number => Some(bytes),
        _ => None,
    };
    fields(bytes).into_iter().filter_map(of).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// CRC-32C by its definition, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    let crc = crc(bytes);
    (crc.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

/// The messages of a file.
fn messages(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).unwrap();
    let (mut bytes, mut found) = (&file[..], Vec::new());
    while !bytes.is_empty() {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(bytes[8..12], masked(&bytes[..8]), "length of record {}", found.len());
        assert_eq!(bytes[12 + n..16 + n], masked(&bytes[12..12 + n]), "record {}", found.len());
        found.push(bytes[12..12 + n].to_vec());
        bytes = &bytes[16 + n..];
    }
    found
}

/// What event files hold: by tag the steps and values, or the steps and texts.
#[derive(Default)]
struct Board {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    texts: BTreeMap<String, Vec<(u64, String)>>,
    n_files: usize,
}

fn files(recipe: &Recipe) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(recipe.dir().join("tensorboard")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn board(recipe: &Recipe) -> Board {
    let mut board = Board::default();
    for path in files(recipe) {
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
        board.n_files += 1;
        for (index, event) in messages(&path).iter().enumerate() {
            let step = fields(event).into_iter().find_map(|(number, field)| match field {
                Field::Number(step) if number == 2 => Some(step),
                _ => None,
            });
            let step = step.unwrap_or(0);
            let version: Vec<String> = all(event, 3).into_iter().map(text).collect();
            assert_eq!(version, if index == 0 { vec!["brain.Event:2"] } else { vec![] });
            for value in all(event, 5).into_iter().flat_map(|summary| all(summary, 1)) {
                let tag = text(all(value, 1)[0]);
                match (all(value, 2).first(), all(value, 8).first()) {
                    (Some(scalar), None) => {
                        let scalar = f32::from_le_bytes((*scalar).try_into().unwrap());
                        board.scalars.entry(tag).or_default().push((step, scalar));
                    }
                    (None, Some(tensor)) => {
                        let plugin = all(all(all(value, 9)[0], 1)[0], 1)[0];
                        assert_eq!(plugin, b"text");
                        let string = text(all(tensor, 8)[0]);
                        board.texts.entry(tag).or_default().push((step, string));
                    }
                    _ => panic!("a value of {tag}"),
                }
            }
        }
    }
    board
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Compares the event files of a run with its other files.
fn check(recipe: &Recipe) -> Board {
    let board = board(recipe);
    let metrics = read_metrics(&recipe.dir().join("metrics.jsonl")).unwrap();
    let of = |value: &dyn Fn(&lehr_train::Metrics) -> Option<f64>| -> Vec<(u64, f32)> {
        metrics.iter().filter_map(|m| Some((m.step, value(m)? as f32))).collect()
    };
    let eval = |value: &dyn Fn(&lehr_train::Evaluation) -> Option<f64>| {
        of(&|m| m.eval.as_ref().and_then(value))
    };
    for (tag, want) in [
        ("train/loss", of(&|m| Some(m.loss))),
        ("train/grad_norm", of(&|m| Some(m.grad_norm))),
        ("train/learning_rate", of(&|m| Some(f64::from(m.lr)))),
        ("speed/tokens_per_s", of(&|m| Some(m.tokens_per_s))),
        ("speed/gflops", of(&|m| Some(m.gflops))),
        ("memory/bytes", of(&|m| Some(m.memory_bytes as f64))),
        ("validation/loss", eval(&|e| Some(e.loss))),
        ("validation/bits_per_byte", eval(&|e| e.bits_per_byte)),
    ] {
        assert_eq!(board.scalars.get(tag), Some(&want), "{tag}");
        assert!(!want.is_empty(), "{tag}");
    }
    assert!(metrics.iter().all(|m| m.memory_bytes > 0));
    assert_eq!(board.texts["recipe"], [(0, indented(&recipe.to_toml()))]);
    let samples = std::fs::read_to_string(recipe.dir().join("samples.jsonl")).unwrap();
    let sample = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        (json["step"].as_u64().unwrap(), indented(json["text"].as_str().unwrap()))
    };
    let samples: Vec<_> = samples.lines().map(sample).collect();
    assert_eq!(board.texts["sample/玻璃"], samples);
    board
}

fn logged(dir: &Path) -> Recipe {
    let mut recipe = recipe(dir, gpt2(32), ObjectiveKind::NextToken);
    recipe.eval.every_steps = 2;
    (recipe.sample.every_steps, recipe.sample.prompts) = (2, vec!["玻璃".to_owned()]);
    recipe
}

#[test]
fn event_files_hold_what_the_other_files_hold() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = logged(scratch.path());
    run_watched(&recipe, Watch::default());
    assert_eq!(check(&recipe).n_files, 1);
    // A finished run that is resumed adds nothing.
    let before = files(&recipe);
    run_watched(&recipe, Watch::default());
    assert_eq!(files(&recipe), before);
}

#[test]
fn a_resumed_run_has_each_step_once() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = logged(scratch.path());
    run_watched(&recipe, Watch { stop_after: Some(5), ..Watch::default() });
    // As after a crash: the checkpoint of step 5 is not there, and the last event is cut.
    std::fs::remove_dir_all(recipe.dir().join("checkpoints/step-5")).unwrap();
    let path = files(&recipe).remove(0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let (_, watch) = run_watched(&recipe, Watch::default());
    assert_eq!(watch.started, Some(4));
    assert_eq!(check(&recipe).n_files, 2);
}

#[test]
fn a_recipe_can_do_without() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = logged(scratch.path());
    recipe.run.tensorboard = false;
    run_watched(&recipe, Watch { stop_after: Some(2), ..Watch::default() });
    assert!(!recipe.dir().join("tensorboard").exists());
    // The key is no part of what the run computes, so it may change. The file then begins later.
    recipe.run.tensorboard = true;
    run_watched(&recipe, Watch::default());
    let steps: Vec<u64> = board(&recipe).scalars["train/loss"].iter().map(|(s, _)| *s).collect();
    assert_eq!(steps, [3, 4, 5, 6]);
}
