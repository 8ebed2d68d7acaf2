//! Token classification against `transformers`: `tools/golden/taggers.py` made `tests/tagger`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, read_json, write_json};
use lehr_model::{Model, Tagger, Tokens};
use lehr_tensor::{Tensor, no_grad};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tagger").join(family)
}

fn square(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x).powi(2)).sum()
}

fn check(family: &str) {
    let dir = folder(family);
    let tagger = Tagger::load(&dir).unwrap();
    assert_eq!(tagger.labels(), ["O", "B-GLASS", "I-GLASS"]);
    assert!(!tagger.tags_last_token(), "transformers does not say which token, so it is the first");
    assert!(tagger.model().warnings().is_empty(), "{:?}", tagger.model().warnings());
    let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
    let (ids, labels) = (golden.ids("input_ids").unwrap(), golden.ids("labels").unwrap());
    let tokens = Tokens::new(ids.ids(), 2, 0).unwrap();
    let all = Tensor::from_ids(&(0..24).collect::<Vec<_>>(), [24]).unwrap();
    let logits = no_grad(|| tagger.logits(&tokens, &all).unwrap());
    let want = golden.tensor("logits", [2, 12, 3].into()).unwrap();
    let error = logits.data().iter().zip(want.data()).map(|(a, b)| (a - b).abs());
    assert!(error.clone().all(|e| e <= 2e-5), "{:?}", error.collect::<Vec<_>>());

    let is_word = |(_, label): &(i32, i32)| *label != -100;
    let (places, labels): (Vec<_>, Vec<_>) =
        (0..).zip(labels.ids().iter().copied()).filter(is_word).unzip();
    let n = labels.len();
    let [places, labels] = [places, labels].map(|ids| Tensor::from_ids(&ids, [n]).unwrap());
    let loss = tagger.loss(&tokens, &places, &labels, n as f32).unwrap();
    let want = golden.tensor("loss", [].into()).unwrap().item().unwrap();
    assert!((loss.item().unwrap() - want).abs() <= 2e-6 * want);
    let (sum, predicted) = tagger.score(&tokens, &places, &labels).unwrap();
    assert!((sum.item().unwrap() / n as f32 - want).abs() <= 2e-6 * want);
    assert_eq!(predicted.len(), n);
    loss.backward().unwrap();
    let params = tagger.model().params().params();
    assert_eq!(params.len(), golden.names().filter(|name| name.starts_with("grad.")).count());
    let want = |name: &str, shape| golden.tensor(&format!("grad.{name}"), shape).unwrap();
    let wants: Vec<_> = params.iter().map(|p| want(p.name(), p.shape())).collect();
    let all: f64 = wants.iter().map(|want| square(want.data().iter().copied())).sum();
    for (param, want) in params.iter().zip(&wants) {
        let grad = param.grad().unwrap_or_else(|| panic!("no gradient for {}", param.name()));
        let pairs = grad.data().iter().zip(want.data());
        let norm = square(want.data().iter().copied());
        // Key biases cannot change a softmax: the reference's values for them are rounding.
        let error = (square(pairs.map(|(a, b)| a - b)) / norm.max(1e-9 * all)).sqrt();
        assert!(error <= 1e-4, "{} is off by {error:.1e}", param.name());
    }
}

#[test]
fn an_encoder_matches_the_reference() {
    check("bert");
}

#[test]
fn a_gpt2_matches_the_reference() {
    check("gpt2");
}

#[test]
fn a_llama_matches_the_reference() {
    check("llama");
}

#[test]
fn a_new_decoder_tags_at_the_last_token_and_says_so_in_its_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let labels = ["O", "B-A", "I-A"].map(str::to_owned).to_vec();
    let tagger = Tagger::new(Model::load(&dir).unwrap(), labels, 1).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    tagger.save(scratch.path()).unwrap();
    assert!(Tagger::is_tagger(scratch.path()));
    let again = Tagger::load(scratch.path()).unwrap();
    assert!(again.tags_last_token());
    assert_eq!(again.labels(), tagger.labels());
    let config = scratch.path().join("config.json");
    let mut json = read_json(&config).unwrap();
    assert_eq!(json["architectures"][0], "LlamaForTokenClassification");
    json["tagged_token"] = "middle".into();
    write_json(&config, &json).unwrap();
    let error = Tagger::load(scratch.path()).err().unwrap().to_string();
    assert!(error.contains("tagged_token") && error.contains("middle"), "{error}");
}

#[test]
fn a_model_of_another_kind_is_refused() {
    let error = Tagger::load(&folder("../classifier")).err().unwrap().to_string();
    assert!(error.contains("BertForSequenceClassification"), "{error}");
    assert!(!Tagger::is_tagger(&folder("../classifier")));
}
