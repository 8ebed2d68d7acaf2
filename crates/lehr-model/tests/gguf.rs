//! GGUF files: every family there and back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lehr_model::io::gguf::{FileType, GgufOptions, Metadata};
use lehr_model::io::{Checkpoint, ModelSource};
use lehr_model::{Model, Tokens, Weights};
use lehr_tensor::{StoredShape, Tensor, no_grad};

fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    dirs
}

/// Families or settings that GGUF cannot store, with the error.
const REFUSED: [(&str, &str); 9] = [
    ("llama-yarn-biases", "hidden_act"),
    ("chatglm-6b", "model_type"),
    ("glm-130b", "model_type"),
    ("nanochat", "model_type"),
    ("lehr", "model_type"),
    ("lehr-some", "model_type"),
    ("gemma3-mixed", "attention_bias"),
    ("qwen3-windows", "use_sliding_window"),
    ("qwen2-windows", "use_sliding_window"),
];

fn options(file_type: FileType) -> GgufOptions<'static> {
    let (tokenizer, more) = (Metadata::default(), Metadata::default());
    GgufOptions { name: "golden", file_type, tokenizer, more }
}

/// Computes logits, or hidden states of a model whose head a file leaves out.
fn output(model: &Model, tokens: &Tokens) -> Vec<f32> {
    no_grad(|| {
        let hidden = model.hidden(tokens).unwrap();
        if model.is_causal() { model.logits(&hidden).unwrap().to_vec() } else { hidden.to_vec() }
    })
}

/// `‖a − b‖ / ‖b‖`.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn every_family_comes_back_from_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let mut n = 0;
    for dir in golden_dirs() {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let model = Model::load(&dir).unwrap();
        let golden = Checkpoint::open(&dir.join("golden.safetensors")).unwrap();
        let ids = golden.ids("input_ids").unwrap();
        let tokens = model.tokens(ids.ids(), ids.shape()[0]).unwrap();
        let want = output(&model, &tokens);
        for file_type in FileType::ALL {
            let path = scratch.path().join(format!("{name}-{}.gguf", file_type.name()));
            let written = model.save_gguf(&path, &options(file_type));
            if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                let error = written.unwrap_err().to_string();
                assert!(error.contains(reason), "{name}: {error}");
                continue;
            }
            let written = written.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(written.n_bytes, std::fs::metadata(&path).unwrap().len(), "{name}");
            let again = Model::load(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            let error = relative_error(&output(&again, &tokens), &want);
            let limit = match file_type {
                // The scale of Gemma's norms is stored with 1 added, which rounds it.
                FileType::F32 => 1e-6,
                FileType::F16 => 2e-3,
                FileType::BF16 => 2e-2,
                FileType::Q8_0 | FileType::Q6_K => 9e-2,
                FileType::Q4_0 | FileType::Q4_K_M | FileType::Q5_K_M => 0.9,
            };
            println!("{name} {}: {error:.1e}", file_type.name());
            assert!(error <= limit, "{name} in {}: off by {error}", file_type.name());
            n += 1;
        }
    }
    assert!(n >= 8 * 8, "{n} files were compared");
}

#[test]
fn a_file_names_its_tokens_and_settings() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.gguf");
    let dir = golden_dirs().into_iter().find(|d| d.ends_with("llama-rope-scaled")).unwrap();
    let model = Model::load(&dir).unwrap();
    model.save_gguf(&path, &options(FileType::F16)).unwrap();
    let source = ModelSource::open(&path).unwrap();
    let metadata = source.gguf_metadata().unwrap();
    assert_eq!(metadata.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.integer("llama.block_count").unwrap(), Some(2));
    assert_eq!(metadata.string("tokenizer.ggml.model").unwrap(), Some("no_vocab"));
    assert_eq!(source.config()["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(source.config()["rope_scaling"]["original_max_position_embeddings"], 32);
    assert_eq!(source.config()["tie_word_embeddings"], true);
    assert!(source.checkpoint().has("model.layers.1.self_attn.q_proj.weight"));
}

#[test]
fn a_matrix_can_be_had_as_it_is_stored() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.gguf");
    let dir = golden_dirs().into_iter().find(|d| d.ends_with("llama")).unwrap();
    let model = Model::load(&dir).unwrap();
    model.save_gguf(&path, &options(FileType::Q8_0)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    for name in ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"] {
        let name = format!("model.layers.1.{name}.weight");
        let shape = model.params().get(&name).unwrap().shape();
        let want = checkpoint.tensor(&name, shape);
        let asked = StoredShape { rows: shape[0], cols: shape[1], transposed: false };
        let stored = checkpoint.matrix(&name, asked).unwrap_or_else(|| panic!("{name}"));
        let mut values = vec![0.0; stored.rows() * stored.cols()];
        stored.dequantize_rows(0..stored.rows(), &mut values);
        assert!(checkpoint.matrix(&name, StoredShape { transposed: true, ..asked }).is_none());
        assert_eq!(values, want.unwrap().data(), "{name}");
    }
    let norm = StoredShape { rows: 1, cols: 64, transposed: false };
    assert!(checkpoint.matrix("model.norm.weight", norm).is_none());
}

/// Generation chooses from logits whose products may round activations to 8 bits; a text is scored
/// by the same numbers.
#[test]
fn log_probabilities_over_a_stored_head_are_those_of_its_logits() {
    let scratch = tempfile::tempdir().unwrap();
    let mut n_labels = 0;
    for name in ["llama", "qwen3", "gemma3"] {
        let dir = golden_dirs().into_iter().find(|dir| dir.ends_with(name)).unwrap();
        let path = scratch.path().join(format!("{name}.gguf"));
        Model::load(&dir).unwrap().save_gguf(&path, &options(FileType::Q8_0)).unwrap();
        let model = Model::open(&path, Weights::AsStored).unwrap();
        assert!(!model.params().stored().is_empty());
        // More rows than are computed at once; every third has no label.
        let vocab_size = model.spec().vocab_size;
        let (batch, t) = (4, 24);
        let ids: Vec<i32> = (0..batch * t).map(|i| (i * 7 % vocab_size) as i32).collect();
        let label = |i: usize| if i.is_multiple_of(3) { -100 } else { (i * 5 % vocab_size) as i32 };
        let labels: Vec<i32> = (0..batch * t).map(label).collect();
        let tokens = model.tokens(&ids, batch).unwrap();
        let targets = Tensor::from_ids(&labels, [batch, t]).unwrap();
        let (found, logits) = no_grad(|| {
            let logits = model.logits(&model.hidden(&tokens).unwrap()).unwrap();
            (model.token_logprobs(&tokens, &targets).unwrap(), logits)
        });
        let found = found.to_vec();
        for (i, row) in logits.to_vec().chunks(vocab_size).enumerate() {
            if labels[i] == -100 {
                assert_eq!(found[i], 0.0, "{name}");
                continue;
            }
            let sum: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
            let want = f64::from(row[labels[i] as usize]) - sum.ln();
            let error = (f64::from(found[i]) - want).abs();
            assert!(error < 2e-6 * want.abs().max(1.0), "{name}: {} and {want}", found[i]);
            n_labels += 1;
        }
    }
    assert_eq!(n_labels, 3 * 64);
}
