//! Adapters in PEFT's format, against what PEFT computes with them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::adapt::{AdapterMethod, LoraScaling};
use lehr_model::io::{Checkpoint, ModelSource, read_json, write_json};
use lehr_model::peft::PeftAdapter;
use lehr_model::{Model, Role, Tokens, Weights};
use lehr_tensor::{Tensor, no_grad};
use serde_json::{Value, json};

const CASES: [(&str, &str); 6] = [
    ("llama", "llama"),
    ("llama-patterns", "llama"),
    ("gpt2", "gpt2"),
    ("qwen3", "qwen3"),
    ("llama-dora", "llama"),
    ("gpt2-dora", "gpt2"),
];

fn peft(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft").join(name)
}

fn base(name: &str) -> ModelSource {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    ModelSource::open(&dir).unwrap()
}

fn open(source: &ModelSource, dir: &Path) -> lehr_model::Result<Model> {
    Model::open_with_adapter(source, Weights::F32, &PeftAdapter::open(dir)?)
}

fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(&peft(name).join("golden.safetensors")).unwrap()
}

/// Tokens and shifted targets of a golden.
fn batch(golden: &Checkpoint, model: &Model) -> (Tokens, Tensor) {
    let (ids, labels) = (golden.ids("input_ids").unwrap(), golden.ids("labels").unwrap());
    let t = ids.shape()[1];
    let next = |row: &[i32]| [&row[1..], &[-100]].concat();
    let targets: Vec<i32> = labels.ids().chunks(t).flat_map(next).collect();
    let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
    (tokens, Tensor::from_ids(&targets, ids.shape()).unwrap())
}

fn logits(model: &Model, tokens: &Tokens) -> Tensor {
    no_grad(|| model.logits(&model.hidden(tokens).unwrap()).unwrap())
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

#[test]
fn logits_loss_and_gradients_are_those_of_peft() {
    for (name, family) in CASES {
        let (model, golden) = (open(&base(family), &peft(name)).unwrap(), golden(name));
        let (tokens, targets) = batch(&golden, &model);
        let found = logits(&model, &tokens);
        let wanted = golden.tensor("logits", found.shape()).unwrap();
        let error = difference(found.data(), wanted.data());
        assert!(error < 2e-5, "{name}: logits are {error} off");
        let plain = Model::load_source(&base(family)).unwrap();
        let changed = difference(logits(&plain, &tokens).data(), wanted.data());
        assert!(changed > 1e-2, "{name}: the adapter changes nothing");

        let n_labels = targets.ids().iter().filter(|id| **id != -100).count() as f32;
        let loss = model.loss(&tokens, &targets, n_labels).unwrap();
        let wanted = golden.tensor("loss", lehr_tensor::Shape::from([1])).unwrap().data()[0];
        let found = loss.item().unwrap();
        assert!((found - wanted).abs() < 1e-5, "{name}: loss {found}, {wanted}");
        loss.backward().unwrap();
        let mut n_trained = 0;
        for param in model.params().trainable() {
            assert_eq!(param.role(), Role::Adapter);
            let key = format!("grad.base_model.model.{}", param.name());
            let wanted = golden.tensor(&key, param.shape()).unwrap();
            let error = difference(&param.grad().unwrap().to_vec(), wanted.data());
            assert!(error < 2e-6, "{name}: {key} is {error} off");
            n_trained += 1;
        }
        let n_golden = golden.names().filter(|key| key.starts_with("grad.")).count();
        assert_eq!(n_trained, n_golden, "{name}");
    }
}

#[test]
fn scales_and_ranks_follow_patterns() {
    let model = open(&base("llama"), &peft("llama-patterns")).unwrap();
    let of = |path: &str| {
        let adapted = model.adapters().iter().find(|adapted| adapted.path == path).unwrap();
        let AdapterMethod::Lora(config) = adapted.method else { panic!("DoRA") };
        assert_eq!(config.scaling, LoraScaling::RootOfRank);
        (config.rank, config.alpha, config.scale())
    };
    assert_eq!(of("model.layers.0.self_attn.q_proj"), (4, 6.0, 3.0));
    assert_eq!(of("model.layers.1.self_attn.q_proj"), (2, 6.0, 6.0 / 2f32.sqrt()));
    assert_eq!(of("model.layers.2.mlp.down_proj"), (3, 3.0, 3.0 / 3f32.sqrt()));
    assert_eq!(of("lm_head"), (4, 1.5, 0.75));
}

/// `tools/golden/adapters.py check` opens what is written here with PEFT.
#[test]
fn what_is_saved_has_the_form_of_peft_and_opens_to_the_same_bits() {
    for (name, family) in CASES {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peft").join(name);
        let model = open(&base(family), &peft(name)).unwrap();
        model.save_adapter(&dir, family).unwrap();
        let tensors = |dir: &Path| {
            let file = Checkpoint::open(&dir.join("adapter_model.safetensors")).unwrap();
            let is_copy = |name: &str| name.contains("base_layer");
            let own = file.stored().filter(|t| !is_copy(&t.name));
            let mut all: Vec<_> = own.map(|t| (t.name, t.shape)).collect();
            all.sort();
            all
        };
        assert_eq!(tensors(&dir), tensors(&peft(name)), "{name}");
        let copy = open(&base(family), &dir).unwrap();
        let (tokens, _) = batch(&golden(name), &model);
        assert_eq!(logits(&copy, &tokens).data(), logits(&model, &tokens).data(), "{name}");
        assert_eq!(PeftAdapter::open(&dir).unwrap().base(), Some(family));
    }
}

#[test]
fn adapters_work_over_stored_weights_and_merge() {
    let model = Model::open_with_adapter(
        &base("llama"),
        "q8_0".parse().unwrap(),
        &PeftAdapter::open(&peft("llama")).unwrap(),
    )
    .unwrap();
    assert!(!model.params().stored().is_empty());
    let (tokens, _) = batch(&golden("llama"), &model);
    let wanted = golden("llama").tensor("logits", logits(&model, &tokens).shape()).unwrap();
    let error = difference(logits(&model, &tokens).data(), wanted.data());
    assert!(error < 0.1, "{error}");
    let merged = open(&base("llama"), &peft("llama")).unwrap().merged().unwrap();
    assert!(difference(logits(&merged, &tokens).data(), wanted.data()) < 2e-5);
}

/// A copy of an adapter with one setting changed.
fn changed(scratch: &Path, key: &str, value: &Value) -> PathBuf {
    let dir = scratch.join(key);
    fs::create_dir_all(&dir).unwrap();
    fs::copy(
        peft("llama").join("adapter_model.safetensors"),
        dir.join("adapter_model.safetensors"),
    )
    .unwrap();
    let mut config = read_json(&peft("llama").join("adapter_config.json")).unwrap();
    config[key] = value.clone();
    write_json(&dir.join("adapter_config.json"), &config).unwrap();
    dir
}

#[test]
fn what_lehr_cannot_do_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "peft_type IA3, expected LORA"),
        ("use_dora", json!(true), "lacks lora_magnitude_vector, but use_dora of"),
        ("bias", json!("all"), "bias = \"all\", biases that were trained"),
        ("new_setting", json!(2), "new_setting = 2, a setting that lehr does not know"),
        ("rank_pattern", json!({ ".*q_proj": 2 }), "the pattern \".*q_proj\""),
        ("rank_pattern", json!({ "q_proj": 2 }), "has rank 4, but adapter_config.json says 2"),
        ("r", json!("four"), "r is \"four\", expected a number"),
    ] {
        let dir = changed(scratch.path(), key, &value);
        let error = PeftAdapter::open(&dir).err().unwrap().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
    // Settings that say nothing change nothing.
    let dir = changed(scratch.path(), "new_setting", &Value::Null);
    assert_eq!(PeftAdapter::open(&dir).unwrap().n_layers(), 3 * 7);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let adapter = |name: &str| PeftAdapter::open(&peft(name)).unwrap();
    let open = |family: &str, adapter: &PeftAdapter| {
        Model::open_with_adapter(&base(family), Weights::F32, adapter).err().unwrap()
    };
    let error = open("gpt2", &adapter("llama"));
    assert!(
        error.to_string().contains("the model has no layer for 21 of the 21 layers"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("trained on"));
    // PEFT saves the matrix of an adapted head, which must be the model's.
    let scratch = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(peft("llama-patterns").join("adapter_model.safetensors")).unwrap();
    let copy = Checkpoint::open(&peft("llama-patterns").join("adapter_model.safetensors")).unwrap();
    assert!(copy.has("lm_head.base_layer.weight"));
    // It is the first tensor of the file.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header] ^= 1;
    fs::write(scratch.path().join("adapter_model.safetensors"), bytes).unwrap();
    let config = peft("llama-patterns").join("adapter_config.json");
    fs::copy(config, scratch.path().join("adapter_config.json")).unwrap();
    let changed = PeftAdapter::open(scratch.path()).unwrap();
    let error = open("llama", &changed).to_string();
    assert!(error.contains("lm_head.base_layer.weight differs from the matrix"), "{error}");
    // The same names with other shapes.
    let error = open("mistral", &adapter("llama")).to_string();
    assert!(error.contains("lora_") && error.contains("shape"), "{error}");
}
