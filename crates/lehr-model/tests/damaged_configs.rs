//! `config.json` with settings that no model can have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, read_json};
use lehr_model::{Config, Model};
use proptest::prelude::*;
use serde_json::{Value, json};

fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect()
}

/// Every family's `config.json`, with the weights beside it.
fn goldens() -> Vec<(Value, Checkpoint)> {
    let open = |dir: &PathBuf| {
        (read_json(&dir.join("config.json")).unwrap(), Checkpoint::open(dir).unwrap())
    };
    golden_dirs().iter().map(open).collect()
}

/// Settings that say how large some weight is.
const SIZES: [&str; 15] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    "num_layers",
    "inner_hidden_size",
    "padded_vocab_size",
    "ffn_hidden_size",
    "kv_channels",
];

#[test]
fn a_size_beyond_all_memory_is_refused_before_memory_is_taken() {
    let mut n_sizes = 0;
    for (config, weights) in goldens() {
        assert!(Model::from_checkpoint(Config::from_json(&config).unwrap(), &weights).is_ok());
        for key in SIZES.into_iter().filter(|key| config[*key].is_u64()) {
            for huge in [1 << 28, 1 << 30, 1 << 31, 1 << 62, u64::MAX] {
                let mut config = config.clone();
                config[key] = huge.into();
                let built = Config::from_json(&config)
                    .and_then(|config| Model::from_checkpoint(config, &weights));
                assert!(built.is_err(), "{key} = {huge} of {config}");
                n_sizes += 1;
            }
        }
    }
    assert!(n_sizes >= 5 * 5 * 3, "{n_sizes}");
}

#[test]
fn numbers_that_overflow_are_named() {
    for (config, _) in goldens() {
        for (key, value, says) in [
            ("initializer_range", json!(1e39), "expected a number below 3.4e38"),
            ("vocab_size", json!(1u64 << 40), "vocab_size is 1099511627776, expected at most"),
            ("vocab_size", json!(-1), "-1"),
            ("vocab_size", json!("many"), "many"),
        ] {
            let mut config = config.clone();
            // ChatGLM2 counts its words under another name.
            let padded = format!("padded_{key}");
            let key = if config[&padded].is_u64() { &padded } else { key };
            config[key] = value;
            let error = Config::from_json(&config).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

/// Values that commonly break programs.
fn odd_value() -> impl Strategy<Value = Value> {
    let numbers = [0u64, 1, 2, 3, 7, 48, 64, 1 << 20, 1 << 30, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
    prop_oneof![
        proptest::sample::select(numbers.to_vec()).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!("default")),
        Just(json!({"rope_type": "llama3", "factor": 1e-300, "rope_theta": 0.0})),
        ".*".prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn a_changed_config_is_an_error_or_the_model(
        family in any::<proptest::sample::Index>(),
        changes in prop::collection::vec((any::<proptest::sample::Index>(), odd_value()), 1..4),
    ) {
        let mut goldens = goldens();
        let at = family.index(goldens.len());
        let (mut config, weights) = goldens.swap_remove(at);
        for (key, value) in changes {
            let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
            config[key.get(&keys)] = value;
        }
        if let Ok(config) = Config::from_json(&config) {
            prop_assert_eq!(Config::from_json(&config.to_json()).unwrap().spec(), config.spec());
            let _ = Model::from_checkpoint(config, &weights);
        }
    }
}
