//! `lehr convert`: copies in other formats, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs;

use common::{fails, json_lines, model_goldens, pretrain, succeeds};
use serde_json::Value;

fn one(out: &str) -> Value {
    json_lines(out).remove(0)
}

/// A folder with the small trained model `base` in it.
fn with_model() -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    pretrain(scratch.path(), "base", &[]);
    scratch
}

/// Models whose family or setting GGUF cannot store, and the setting.
const NOT_IN_GGUF: [(&str, &str); 8] = [
    ("chatglm-6b", "a family that GGUF has"),
    ("glm-130b", "a family that GGUF has"),
    ("nanochat", "a family that GGUF has"),
    ("lehr", "a family that GGUF has"),
    ("lehr-some", "a family that GGUF has"),
    ("gemma3-mixed", "attention_bias"),
    ("llama-yarn-biases", "hidden_act"),
    ("qwen3-windows", "use_sliding_window"),
];

#[test]
fn every_family_keeps_what_its_reference_computed() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    for golden in model_goldens() {
        let name = golden.file_name().unwrap().to_str().unwrap().to_owned();
        let (model, file) = (golden.display().to_string(), golden.join("golden.safetensors"));
        let folder = format!("{name}-folder");
        let args = ["convert", &model, "--to", &folder, "--format", "f32", "--json"];
        let said = one(&succeeds(dir, &args));
        assert_eq!((&said["passed"], &said["error"]), (&true.into(), &0.0.into()), "{said}");
        let verified = succeeds(dir, &["verify", &folder, file.to_str().unwrap()]);
        assert!(!verified.contains("FAILED"), "{name}: {verified}");
        if let Some((_, why)) = NOT_IN_GGUF.iter().find(|(other, _)| *other == name) {
            fails(dir, &["convert", &model, "--to", "no.gguf"], &[why]);
            continue;
        }
        let gguf = format!("{name}.gguf");
        let said = one(&succeeds(dir, &["convert", &model, "--to", &gguf, "--json"]));
        assert!(said["passed"] == true && said["format"] == "f16", "{said}");
        assert!(said["error"].as_f64().unwrap() > 0.0, "f16 rounds: {said}");
    }
}

#[test]
fn a_trained_model_says_the_same_as_a_file_and_as_a_folder() {
    let made = with_model();
    let (scratch, base) = (tempfile::tempdir().unwrap(), made.path().join("base"));
    let (dir, base) = (scratch.path(), base.display().to_string());
    let greedy = |model: &str| {
        let args = ["generate", model, "-p", "glass 12", "-n", "12", "--temperature", "0"];
        succeeds(dir, &args)
    };
    let want = greedy(&base);
    succeeds(dir, &["convert", &base, "--to", "a.gguf", "--format", "f32"]);
    assert_eq!(greedy("a.gguf"), want);
    succeeds(dir, &["convert", "a.gguf", "--to", "folder", "--format", "f32"]);
    assert_eq!(greedy("folder"), want);
    succeeds(dir, &["convert", "folder", "--to", "b.gguf", "--format", "F32"]);
    assert_eq!(fs::metadata(dir.join("a.gguf")).unwrap().len() / 4096, {
        fs::metadata(dir.join("b.gguf")).unwrap().len() / 4096
    });
    let inspected = succeeds(dir, &["inspect", "b.gguf"]);
    assert!(inspected.contains("LlamaForCausalLM"), "{inspected}");
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_lost() {
    let made = with_model();
    let (scratch, base) = (tempfile::tempdir().unwrap(), made.path().join("base"));
    let (dir, base) = (scratch.path(), base.display().to_string());
    fs::write(dir.join("there.gguf"), "mine").unwrap();
    fails(dir, &["convert", &base, "--to", "there.gguf"], &["there.gguf", "the target exists"]);
    assert_eq!(fs::read_to_string(dir.join("there.gguf")).unwrap(), "mine");
    let quantised = ["convert", &base, "--to", "folder", "--format", "q8_0"];
    fails(dir, &quantised, &["--format is q8_0", "f32, f16, bf16", ".gguf"]);
    let unknown = ["convert", &base, "--to", "x.gguf", "--format", "q9"];
    fails(dir, &unknown, &["--format is q9", "q4_k_m"]);
    fails(dir, &["convert", "nowhere", "--to", "x.gguf"], &["nowhere", "no such file"]);
    fails(dir, &["convert", "there.gguf", "--to", "x.gguf"], &["it is a file that is not GGUF"]);
    fs::write(dir.join("binary"), [0xff, 0xfe]).unwrap();
    let sample = ["convert", &base, "--to", "x.gguf", "--sample", "binary"];
    fails(dir, &sample, &["reading the sample binary"]);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
}
