//! The outline of a model against the model itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, read_json};
use lehr_model::{Config, Model, Outline, Role};
use lehr_tensor::quant::WeightFormat;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn outline(dir: &Path) -> Outline {
    let config = Config::from_json(&read_json(&dir.join("config.json")).unwrap()).unwrap();
    Outline::new(config, &Checkpoint::open(dir).unwrap()).unwrap()
}

#[test]
fn the_outline_of_every_family_has_the_parameters_of_the_model() {
    let mut n_models = 0;
    for entry in std::fs::read_dir(golden("")).unwrap() {
        let dir = entry.unwrap().path();
        // A model in parts has no whole weights to outline.
        if !dir.join("model.safetensors").is_file() {
            continue;
        }
        let (outline, model) = (outline(&dir), Model::load(&dir).unwrap());
        let wanted: Vec<_> =
            model.params().params().iter().map(|p| (p.name().to_owned(), p.shape())).collect();
        let found: Vec<_> = outline.parameters.iter().map(|p| (p.name.clone(), p.shape)).collect();
        assert_eq!(found, wanted, "{}", dir.display());
        assert_eq!(outline.n_values(), model.params().n_values() as u64);
        assert_eq!(outline.is_causal, model.is_causal());
        assert_eq!(
            Role::ALL.map(|r| outline.n_values_of(r)).iter().sum::<u64>(),
            outline.n_values()
        );
        for (parameter, param) in outline.parameters.iter().zip(model.params().params()) {
            assert_eq!(parameter.role, param.role(), "{}", parameter.name);
        }
        n_models += 1;
    }
    assert!(n_models >= 3);
}

#[test]
fn the_numbers_of_a_llama_are_those_of_its_formula() {
    let outline = outline(&golden("llama"));
    // V = 160, D = 64, F = 112, 3 blocks, 4 heads of 16 and 2 for keys and values.
    let (v, d, f, kv) = (160, 64, 112, 32);
    assert_eq!(outline.n_values_of(Role::TokenEmbedding), v * d);
    assert_eq!(outline.n_values_of(Role::Head), v * d);
    assert_eq!(outline.n_values_of(Role::Attention), 3 * (2 * d * d + 2 * d * kv));
    assert_eq!(outline.n_values_of(Role::Mlp), 3 * 3 * d * f);
    assert_eq!(outline.n_values_of(Role::Norm), 7 * d);
    let n = outline.n_values();
    assert_eq!(outline.weight_bytes(WeightFormat::F32), 4 * n);
    // Norms stay f32.
    assert_eq!(outline.weight_bytes(WeightFormat::BF16), 2 * n + 2 * 7 * d);
    // Rows of `down_proj` have 112 values, not a multiple of 32, so they are in f16.
    let matrices = n - 7 * d - 3 * d * f;
    assert_eq!(
        outline.weight_bytes(WeightFormat::Q8_0),
        matrices / 32 * 34 + 4 * 7 * d + 2 * 3 * d * f
    );
}

#[test]
fn a_weight_that_is_missing_or_of_another_size_is_named() {
    let dir = golden("llama");
    let mut config = read_json(&dir.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    config["intermediate_size"] = 96.into();
    let error = Outline::new(Config::from_json(&config).unwrap(), &checkpoint).unwrap_err();
    assert!(error.to_string().contains("mlp.gate_proj.weight"), "{error}");
    config["intermediate_size"] = 112.into();
    config["num_hidden_layers"] = 4.into();
    let error = Outline::new(Config::from_json(&config).unwrap(), &checkpoint).unwrap_err();
    assert!(error.to_string().contains("model.layers.3"), "{error}");
}
