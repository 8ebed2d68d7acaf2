//! Classifiers on encoders against `transformers`: `tools/golden/encoders.py` made
//! `tests/classifier`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::{Checkpoint, read_json, write_json};
use lehr_model::{Classifier, Model, TokenRows, Tokens};
use lehr_tensor::{Tensor, no_grad};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/classifier")
}

fn golden() -> Checkpoint {
    Checkpoint::open(&folder().join("golden.safetensors")).unwrap()
}

/// The golden's texts of 12, 5, 1 and 9 tokens in two rows: the first and third, the second and
/// fourth, with padding behind.
fn packed(golden: &Checkpoint) -> (Tokens, Tensor) {
    const LEN: usize = 15;
    let (ids, lengths) = (golden.ids("input_ids").unwrap(), golden.ids("lengths").unwrap());
    let (mut tokens, mut positions) = ([0; 2 * LEN], [0; 2 * LEN]);
    let mut starts: Vec<i32> = (0..2 * LEN as i32).map(|i| i % LEN as i32).collect();
    let (mut ends, mut filled) = ([0; 4], [0, 0]);
    for text in 0..4 {
        let (row, length) = (text % 2, lengths.ids()[text] as usize);
        let start = filled[row];
        for t in 0..length {
            let at = row * LEN + start + t;
            tokens[at] = ids.ids()[text * 12 + t];
            (positions[at], starts[at]) = (t as i32, start as i32);
        }
        filled[row] += length;
        ends[text] = (row * LEN + filled[row] - 1) as i32;
    }
    let rows = TokenRows {
        ids: &tokens,
        positions: &positions,
        block_positions: None,
        segment_starts: &starts,
        prefix_lens: None,
        batch_size: 2,
        seq_len: LEN,
    };
    let tokens = Tokens::packed(&rows).unwrap();
    (tokens, Tensor::from_ids(&ends, [4]).unwrap())
}

fn square(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x).powi(2)).sum()
}

#[test]
fn logits_loss_and_every_gradient_match_the_reference() {
    let (classifier, golden) = (Classifier::load(&folder()).unwrap(), golden());
    assert_eq!(classifier.labels(), ["calm", "glad", "sad"]);
    let (tokens, ends) = packed(&golden);
    let logits = no_grad(|| classifier.logits(&tokens, &ends).unwrap());
    let want = golden.tensor("logits", logits.shape()).unwrap();
    let error = logits.data().iter().zip(want.data()).map(|(a, b)| (a - b).abs());
    assert!(error.clone().all(|e| e <= 2e-5), "{:?}", error.collect::<Vec<_>>());
    let labels = golden.ids("labels").unwrap();
    let loss = classifier.loss(&tokens, &ends, &labels, 4.0).unwrap();
    let want = golden.tensor("loss", [].into()).unwrap().item().unwrap();
    assert!((loss.item().unwrap() - want).abs() <= 1e-6 * want);
    loss.backward().unwrap();
    let params = classifier.model().params().params();
    let n_golden = golden.names().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(params.len(), n_golden);
    let want = |name: &str, shape| golden.tensor(&format!("grad.{name}"), shape).unwrap();
    let wants: Vec<_> = params.iter().map(|p| want(p.name(), p.shape())).collect();
    let all: f64 = wants.iter().map(|want| square(want.data().iter().copied())).sum();
    for (param, want) in params.iter().zip(&wants) {
        let grad = param.grad().unwrap_or_else(|| panic!("no gradient for {}", param.name()));
        let pairs = grad.data().iter().zip(want.data());
        let norm = square(want.data().iter().copied());
        // Key biases cannot change a softmax: the reference's values for them are rounding.
        let error = (square(pairs.map(|(a, b)| a - b)) / norm.max(1e-10 * all)).sqrt();
        assert!(error <= 1e-4, "{} is off by {error:.1e}", param.name());
    }
}

/// A small decoder of the golden models, as a classifier by the mean.
fn by_mean() -> Classifier {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
    Classifier::new_by_mean(Model::load(&dir).unwrap(), labels, 1).unwrap()
}

/// Two texts in a row of eight tokens and one in the next, with padding behind it.
fn three_texts() -> (Tokens, Tensor) {
    let starts = [0, 0, 0, 3, 3, 3, 3, 3, 0, 0, 0, 0, 4, 5, 6, 7];
    let rows = TokenRows {
        ids: &[5, 6, 7, 8, 9, 10, 11, 12, 9, 8, 7, 6, 0, 0, 0, 0],
        positions: &[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0, 0],
        block_positions: None,
        segment_starts: &starts,
        prefix_lens: None,
        batch_size: 2,
        seq_len: 8,
    };
    (Tokens::packed(&rows).unwrap(), Tensor::from_ids(&[2, 7, 11], [3]).unwrap())
}

#[test]
fn the_mean_is_that_of_the_texts_own_hidden_states() {
    let classifier = by_mean();
    let (tokens, ends) = three_texts();
    let together = no_grad(|| classifier.logits(&tokens, &ends).unwrap()).to_vec();
    let score = classifier.model().params().get("score.weight").unwrap().tensor().to_vec();
    for (text, ids) in [&[5, 6, 7][..], &[8, 9, 10, 11, 12], &[9, 8, 7, 6]].iter().enumerate() {
        let alone = Tokens::new(ids, 1, 0).unwrap();
        let hidden = no_grad(|| classifier.model().hidden(&alone).unwrap()).to_vec();
        let d = hidden.len() / ids.len();
        let mean = |c: usize| hidden.iter().skip(c).step_by(d).map(|h| f64::from(*h)).sum::<f64>();
        for label in 0..3 {
            let row = &score[label * d..(label + 1) * d];
            let want: f64 = row.iter().enumerate().map(|(c, w)| f64::from(*w) * mean(c)).sum();
            let error = (f64::from(together[3 * text + label]) - want / ids.len() as f64).abs();
            assert!(error < 1e-6, "text {text}, label {label}: off by {error:.1e}");
        }
    }
    let outside = Tensor::from_ids(&[16], [1]).unwrap();
    assert!(classifier.predict(&tokens, &outside).is_err());
}

#[test]
fn the_gradient_through_the_mean_is_the_slope_of_the_loss() {
    let classifier = by_mean();
    let (tokens, ends) = three_texts();
    let labels = Tensor::from_ids(&[0, 2, 1], [3]).unwrap();
    let loss = || classifier.loss(&tokens, &ends, &labels, 3.0).unwrap();
    loss().backward().unwrap();
    for name in ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "score.weight"] {
        let param = classifier.model().params().get(name).unwrap();
        let (grad, before) = (param.grad().unwrap().data().to_vec(), param.tensor().to_vec());
        // Along the gradient, where the slope is its norm.
        let norm = square(grad.iter().copied()).sqrt();
        assert!(norm > 1e-4, "{name}: {norm}");
        let at = |step: f64| {
            let moved = before.iter().zip(&grad);
            let moved: Vec<f32> =
                moved.map(|(w, g)| (f64::from(*w) + step * f64::from(*g) / norm) as f32).collect();
            param.set(&Tensor::from_slice(&moved, param.shape()).unwrap()).unwrap();
            f64::from(no_grad(loss).item().unwrap())
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        param.set(&Tensor::from_slice(&before, param.shape()).unwrap()).unwrap();
        assert!((slope / norm - 1.0).abs() < 1e-2, "{name}: slope {slope}, norm {norm}");
    }
}

#[test]
fn a_classifier_by_the_mean_is_saved_as_one() {
    let scratch = tempfile::tempdir().unwrap();
    let (classifier, (tokens, ends)) = (by_mean(), three_texts());
    classifier.save(scratch.path()).unwrap();
    let copy = Classifier::load(scratch.path()).unwrap();
    assert!(copy.ends_texts());
    let logits = |c: &Classifier| no_grad(|| c.logits(&tokens, &ends).unwrap()).to_vec();
    assert_eq!(logits(&copy), logits(&classifier));
    // An encoder has a pooling of its own.
    let encoder = Model::load(&folder()).unwrap();
    let labels = vec!["a".to_owned(), "b".to_owned()];
    let error = Classifier::new_by_mean(encoder, labels, 1).err().unwrap();
    assert!(error.to_string().contains("pooling"), "{error}");
}

#[test]
fn a_saved_classifier_loads_to_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    let classifier = Classifier::load(&folder()).unwrap();
    classifier.save(scratch.path()).unwrap();
    let json = read_json(&scratch.path().join("config.json")).unwrap();
    assert_eq!(json["architectures"][0], "BertForSequenceClassification");
    let copy = Classifier::load(scratch.path()).unwrap();
    assert_eq!(copy.labels(), classifier.labels());
    let (all, copies) = (classifier.model().params(), copy.model().params());
    assert_eq!(all.params().len(), copies.params().len());
    for param in all.params() {
        let copy = copies.get(param.name()).unwrap();
        assert_eq!(copy.tensor().to_vec(), param.tensor().to_vec());
    }
}

#[test]
fn a_new_classifier_keeps_the_pooler_of_the_weights_or_starts_one() {
    let labels = || vec!["a".to_owned(), "b".to_owned()];
    let name = "bert.pooler.dense.weight";
    let value = |model: &Model| model.params().get(name).map(|p| p.tensor().to_vec());
    // The encoder with a pooler, as published without a head.
    let model = Model::load(&folder()).unwrap();
    let before = value(&model).unwrap();
    let classifier = Classifier::new(model, labels(), 1).unwrap();
    assert_eq!(value(classifier.model()).unwrap(), before);
    // A masked language model, which has no pooler.
    let masked = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert");
    let model = Model::load(&masked).unwrap();
    assert_eq!(value(&model), None);
    let classifier = Classifier::new(model, labels(), 1).unwrap();
    assert!(value(classifier.model()).is_some());
    let tokens = Tokens::new(&[5, 6, 7], 1, 0).unwrap();
    let ends = Tensor::from_ids(&[2], [1]).unwrap();
    assert_eq!(classifier.predict(&tokens, &ends).unwrap().len(), 1);
    let outside = Tensor::from_ids(&[3], [1]).unwrap();
    assert!(classifier.predict(&tokens, &outside).is_err());
}

#[test]
fn two_labels_without_names_are_named_as_transformers_does() {
    let scratch = tempfile::tempdir().unwrap();
    let model = Model::load(&folder()).unwrap();
    let labels = ["LABEL_0", "LABEL_1"].map(str::to_owned).to_vec();
    Classifier::new(model, labels.clone(), 1).unwrap().save(scratch.path()).unwrap();
    let path = scratch.path().join("config.json");
    let mut json = read_json(&path).unwrap();
    let map = json.as_object_mut().unwrap();
    map.remove("id2label");
    map.remove("label2id");
    write_json(&path, &json).unwrap();
    assert_eq!(Classifier::load(scratch.path()).unwrap().labels(), labels);
}

#[test]
fn an_encoder_without_a_head_has_neither_logits_nor_a_loss() {
    let model = Model::load(&folder()).unwrap();
    let tokens = Tokens::new(&[5, 6, 7], 1, 0).unwrap();
    let hidden = no_grad(|| model.hidden(&tokens).unwrap());
    let targets = Tensor::from_ids(&[5, 6, 7], [1, 3]).unwrap();
    for error in [model.logits(&hidden).err(), model.loss(&tokens, &targets, 3.0).err()] {
        let error = error.unwrap();
        assert!(
            error.to_string().contains("this BertModel hold no language-model head"),
            "{error}"
        );
        assert!(error.hint().is_some());
    }
}
