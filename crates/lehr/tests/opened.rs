//! Every command that opens a model names what its files hold and the model does not use.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{
    copy_folder, fails, newest_checkpoint, pretrain, run, succeeds, write, write_chat,
    write_labelled,
};
use lehr_model::io::{Checkpoint, TensorFile, read_json, write_json, write_parts};
use lehr_tensor::Tensor;
use serde_json::{Value, json};

/// Adds a key to `config.json` and a tensor to the weights.
fn extend(dir: &Path) {
    let path = dir.join("config.json");
    let mut config = read_json(&path).unwrap();
    config["odd_key"] = 7.into();
    write_json(&path, &config).unwrap();
    let path = dir.join("model.safetensors");
    let read = Checkpoint::open(&path).unwrap();
    let tensor = |name: &str| {
        let shape = read.shape(name).unwrap().into();
        (name.to_owned(), read.tensor(name, shape).unwrap())
    };
    let mut all: Vec<_> = read.names().map(tensor).collect();
    all.push(("model.layers.0.odd.bias".to_owned(), Tensor::from_slice(&[1.0], [1]).unwrap()));
    write_parts(&path, TensorFile::new(all, &[]).unwrap().parts()).unwrap();
}

/// Runs a command and checks that it succeeds and names both.
fn names_both(dir: &Path, args: &[&str]) {
    let ran = run(dir, args);
    let said = format!("{}{}", ran.out, ran.err);
    assert!(ran.code == Some(0), "{args:?}: {said}");
    for part in ["`odd_key` = 7", "`model.layers.*.odd.bias`"] {
        assert!(said.contains(part), "{args:?} does not say {part}: {said}");
    }
}

fn copy_of(run: &Path, to: PathBuf) -> PathBuf {
    copy_folder(&newest_checkpoint(run), &to);
    // With it, the changes below would be damage.
    fs::remove_file(to.join("manifest.json")).unwrap();
    to
}

#[test]
fn every_command_names_what_is_not_used() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    write_chat(dir, 20);
    write_labelled(dir, 20);
    let set = ["--set", "train.steps=2", "--set", "schedule.warmup_steps=1"];
    let tune = |data: &'static str, out: &'static str| {
        [&["finetune", "--model", "base", "--data", data, "--out", out][..], &set].concat()
    };
    succeeds(dir, &tune("chat.jsonl", "talk"));
    succeeds(dir, &tune("labelled.jsonl", "labels"));
    for name in ["base", "talk", "labels"] {
        extend(&copy_of(&dir.join(name), dir.join(format!("odd-{name}"))));
    }
    names_both(dir, &["generate", "odd-base", "-p", "glass", "-n", "2"]);
    names_both(dir, &["chat", "odd-talk", "-p", "hello", "-n", "2"]);
    names_both(dir, &["eval", "odd-base", "--data", "text.txt"]);
    names_both(dir, &["embed", "odd-base", "-t", "glass", "--json"]);
    names_both(dir, &["classify", "odd-labels", "-t", "glass"]);
    names_both(dir, &["convert", "odd-base", "--to", "copy", "--format", "f32"]);
    names_both(dir, &["inspect", "odd-base"]);
    names_both(dir, &["doctor", "odd-base"]);
    let tuned = ["finetune", "--model", "odd-base", "--data", "chat.jsonl", "--out", "more"];
    names_both(dir, &[&tuned[..], &set].concat());
}

#[test]
fn ids_without_a_row_are_named_when_the_model_is_opened_and_in_texts() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let copy = copy_of(&dir.join("base"), dir.join("more"));
    let path = copy.join("tokenizer.json");
    let mut json: Value = read_json(&path).unwrap();
    let n_rows = read_json(&copy.join("config.json")).unwrap()["vocab_size"].clone();
    json["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": n_rows, "content": "<image>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false,
    }));
    fs::write(&path, json.to_string()).unwrap();
    let ran = run(dir, &["generate", "more", "-p", "glass", "-n", "2"]);
    assert!(ran.code == Some(0) && ran.err.contains("\"<image>\""), "{}", ran.err);
    // A file of ids with the token in it.
    write(dir, "image.txt", "glass and <image> and glass again, and <image> once more\n");
    let says = ["\"<image>\"", "expected ids below"];
    fails(dir, &["generate", "more", "-p", "glass <image>"], &says);
    fails(dir, &["embed", "more", "-t", "glass <image>"], &says);
    fails(dir, &["eval", "more", "--data", "image.txt"], &says);
}
