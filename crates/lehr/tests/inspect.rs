//! What `lehr inspect` says about models of every kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{copy_folder, fails, json_lines, model_goldens, pretrain, succeeds};
use serde_json::{Value, json};

fn inspect(path: &Path) -> Value {
    let path = path.display().to_string();
    json_lines(&succeeds(Path::new("."), &["inspect", &path, "--tensors", "--json"])).remove(0)
}

fn pickles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/pickle")
}

fn golden_llama() -> PathBuf {
    let is_llama = |dir: &PathBuf| dir.file_name().is_some_and(|name| name == "llama");
    model_goldens().into_iter().find(is_llama).unwrap()
}

#[test]
fn a_hugging_face_folder_is_described() {
    let found = inspect(&golden_llama());
    assert_eq!(found["architecture"]["class"], "LlamaForCausalLM");
    assert_eq!(found["architecture"]["kv_heads"], 2);
    assert_eq!(found["parameters"], 122_304);
    assert_eq!(found["parameters_by_role"]["mlp"], 3 * 3 * 64 * 112);
    assert_eq!(found["weight_bytes"]["F32"], 4 * 122_304);
    assert_eq!(found["cache_bytes"]["F32"], 4 * 2 * 3 * 128 * 2 * 16);
    assert_eq!(found["cache_bytes_per_token"], json!({ "F32": 768, "BF16": 384 }));
    assert_eq!(found["fits"][0]["name"], "CPU");
    assert_eq!(found["fits"][0]["context"]["F32"], 128);
    assert_eq!(found["stored"][0]["format"], "F32");
    assert_eq!(found["unused_tensors"], json!([]));
    assert_eq!(found["tensors"].as_array().unwrap().len(), 30);
    let said = succeeds(Path::new("."), &["inspect", &golden_llama().display().to_string()]);
    for part in [
        "LlamaForCausalLM",
        "122.3 k",
        "3 of width 64",
        "128 tokens",
        "477.8 KiB       768 B    96.0 KiB",
        "f32 the full context",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let said = succeeds(Path::new("."), &["doctor", &golden_llama().display().to_string()]);
    for part in ["device = \"auto\"", "477.8 KiB       768 B    96.0 KiB", "f32 the full context"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn pytorch_weights_are_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden_llama().join("config.json"), dir.path().join("config.json")).unwrap();
    let bin = dir.path().join("pytorch_model.bin");
    fs::copy(pickles().join("llama/pytorch_model.bin"), &bin).unwrap();
    let (found, wanted) = (inspect(dir.path()), inspect(&golden_llama()));
    for key in ["architecture", "parameters_by_role", "tensors", "weight_bytes"] {
        assert_eq!(found[key], wanted[key], "{key}");
    }
    let bare = inspect(&bin);
    assert_eq!(bare["tensors"], wanted["tensors"]);
    assert_eq!(bare["problems"], json!(["a file of weights without a configuration"]));
}

#[test]
fn a_run_tells_how_it_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    pretrain(dir.path(), "run", &[]);
    let found = inspect(&dir.path().join("run"));
    assert_eq!(found["training"]["objective"], "next_token");
    assert!(found["training"]["steps"].as_u64().unwrap() > 0);
    assert!(found["training"]["tokens seen"].as_u64().unwrap() > 0);
    assert_eq!(found["tokenizer"]["kind"], "BPE");
    assert_eq!(found["tokenizer"]["vocab_size"], found["architecture"]["vocab_size"]);
    assert!(found["tokenizer"]["special"]["<|end|>"].is_u64());
    assert_eq!(found["problems"], json!([]));
}

#[test]
fn what_does_not_fit_is_said_and_the_rest_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(&golden_llama(), dir.path());
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"llama\"", "\"unheard_of\"")).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let found = inspect(dir.path());
    assert!(found["problems"][0].as_str().unwrap().contains("unheard_of"), "{found}");
    assert_eq!(found["tensors"].as_array().unwrap().len(), 30);
    assert_eq!(found["chat_template"], "{{ messages }}");
    fails(dir.path(), &["inspect", "nowhere"], &["nowhere"]);
    fs::write(dir.path().join("model.safetensors"), "damaged").unwrap();
    fails(dir.path(), &["inspect", "."], &["model.safetensors", "not a whole"]);
}
