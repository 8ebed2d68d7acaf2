//! A `config.json`, and an attempt to load a small model that may not match it. Seeds: the files of
//! that name below `crates/lehr-model/tests/golden`.

#![no_main]

use std::sync::LazyLock;

use lehr_model::io::Checkpoint;
use lehr_model::{Config, Model};

static WEIGHTS: LazyLock<Checkpoint> = LazyLock::new(|| {
    let bytes = include_bytes!("../../crates/lehr-model/tests/golden/llama/model.safetensors");
    Checkpoint::from_bytes("model.safetensors".as_ref(), bytes).expect("the golden file is whole")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let Ok(config) = Config::from_json(&json) else { return };
    let again = Config::from_json(&config.to_json());
    assert!(again.is_ok_and(|again| again.spec() == config.spec()), "{config:?}");
    let _ = Model::from_checkpoint(config, &WEIGHTS);
});
