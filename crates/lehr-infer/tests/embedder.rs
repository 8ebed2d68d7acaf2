//! Vectors of texts against `transformers`: `tools/golden/encoders.py` made `tests/embedder`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use lehr_infer::{Embedder, Embeddings, Engine, EngineSettings, Loaded, Pooling};
use lehr_model::Weights;
use lehr_model::io::{Checkpoint, read_json};
use lehr_tensor::no_grad;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/embedder")
}

fn texts() -> Vec<String> {
    let json = read_json(&folder().join("texts.json")).unwrap();
    json.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// A copy of the folder with other contents of one file.
fn copy_with(dir: &Path, name: &str, contents: &str) -> PathBuf {
    fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let files = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    ];
    for file in files {
        fs::copy(folder().join(file), dir.join(file)).unwrap();
    }
    fs::write(dir.join(name), contents).unwrap();
    dir.to_owned()
}

fn largest_difference(a: &Embeddings, b: &[f32]) -> f32 {
    assert_eq!(a.vectors.data().len(), b.len());
    a.vectors.data().iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn vectors_match_the_reference_with_every_pooling() {
    let golden = Checkpoint::open(&folder().join("golden.safetensors")).unwrap();
    let texts = texts();
    let embedder = Embedder::open(&folder()).unwrap();
    assert_eq!((embedder.pooling(), embedder.max_tokens()), (Pooling::Mean, 16));
    let mut embedder = embedder;
    for (pooling, name) in
        [(Pooling::Mean, "mean"), (Pooling::First, "first"), (Pooling::Last, "last")]
    {
        embedder = embedder.with_pooling(pooling);
        let found = embedder.embed(&texts).unwrap();
        let want = golden.tensor(name, [texts.len(), 32].into()).unwrap();
        let error = largest_difference(&found, want.data());
        assert!(error <= 2e-6, "{name} is off by {error:.1e}");
        for vector in found.vectors.data().chunks_exact(32) {
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() <= 1e-6);
        }
        let lengths = golden.ids("lengths").unwrap();
        assert!(found.cut.iter().all(|text| lengths.ids()[*text] == 16) && found.cut.len() >= 2);
    }
}

#[test]
fn a_vector_does_not_depend_on_the_texts_around_it() {
    // More texts than fit into one batch, in no order of length.
    let texts = texts();
    let many: Vec<&str> = (0..900).map(|i| &*texts[(i * 5 + i / 9) % texts.len()]).collect();
    let embedder = Embedder::open(&folder()).unwrap();
    let together = embedder.embed(&many).unwrap();
    let alone = texts.iter().map(|text| embedder.embed(&[text]).unwrap().vectors.to_vec());
    let alone: Vec<_> = alone.collect();
    for (text, vector) in many.iter().zip(together.vectors.data().chunks_exact(32)) {
        let which = texts.iter().position(|known| known == text).unwrap();
        let error = vector.iter().zip(&alone[which]).map(|(a, b)| (a - b).abs());
        assert!(error.clone().all(|e| e <= 1e-6), "{text:?}: {:?}", error.collect::<Vec<_>>());
    }
    assert_eq!(*embedder.embed::<&str>(&[]).unwrap().vectors.shape(), [0, 32]);
}

#[test]
fn a_prefix_and_a_limit_change_the_text_and_nothing_else() {
    let embedder = || Embedder::open(&folder()).unwrap();
    let vector = |embedder: &Embedder, text: &str| embedder.embed(&[text]).unwrap();
    let want = vector(&embedder(), "the glass cools").vectors.to_vec();
    let found = vector(&embedder().with_prefix("the "), "glass cools");
    assert_eq!(found.vectors.to_vec(), want);
    // [CLS], two words, [SEP].
    let found = vector(&embedder().with_max_tokens(4), "glass oven lens bowl");
    assert_eq!(found.cut, [0]);
    assert_eq!(found.vectors.to_vec(), vector(&embedder(), "glass oven").vectors.to_vec());
    // A folder's own prompt.
    let scratch = tempfile::tempdir().unwrap();
    let prompts = r#"{"prompts": {"query": "the "}, "default_prompt_name": "query"}"#;
    let dir = copy_with(scratch.path(), "config_sentence_transformers.json", prompts);
    let found = vector(&Embedder::open(&dir).unwrap(), "glass cools");
    assert_eq!(found.vectors.to_vec(), want);
    let too_few = embedder().with_max_tokens(1).embed(&["glass"]).unwrap_err();
    assert!(too_few.to_string().contains("2 tokens"), "{too_few}");
}

#[test]
fn ways_of_pooling_that_are_not_known_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let refused = |name: &str, contents: &str, says: &str| {
        let error = Embedder::open(&copy_with(scratch.path(), name, contents)).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.hint().is_some());
        copy_with(scratch.path(), name, &fs::read_to_string(folder().join(name)).unwrap());
    };
    let dense = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
    refused("modules.json", dense, "the module is Dense, expected");
    let outside = r#"[{"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    refused("modules.json", outside, "`../1_Pooling` is not a plain folder name");
    refused("modules.json", "{}", "expected a list");
    let file = "1_Pooling/config.json";
    refused(file, r#"{"pooling_mode_max_tokens": true}"#, "the pooling is max_tokens");
    refused(file, "{}", "the pooling is missing");
    let two = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
    refused(file, two, "cls_token and mean_tokens");
}

#[test]
fn a_prompt_that_is_not_included_is_left_out_of_the_mean() {
    let scratch = tempfile::tempdir().unwrap();
    let pooling = r#"{"pooling_mode_mean_tokens": true, "include_prompt": false}"#;
    let dir = copy_with(scratch.path(), "1_Pooling/config.json", pooling);
    let embedder = Embedder::open(&dir).unwrap().with_prefix("the ");
    let found = embedder.embed(&["glass cools"]).unwrap().vectors.to_vec();
    // [CLS] and the prompt's one token come first.
    let Loaded { model, tokenizer, .. } = Loaded::open(&dir, Weights::AsStored).unwrap();
    let framed = tokenizer.encode_framed(&["the glass cools"], 16).unwrap().remove(0);
    let ids: Vec<i32> = framed.ids.into_iter().map(|id| id as i32).collect();
    let hidden = no_grad(|| model.hidden(&model.tokens(&ids, 1).unwrap()).unwrap().to_vec());
    let sum: Vec<f32> =
        (0..32).map(|i| hidden[2 * 32..].iter().skip(i).step_by(32).sum()).collect();
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (found, sum) in found.iter().zip(&sum) {
        assert!((found - sum / length).abs() < 1e-5, "{found} {}", sum / length);
    }
    let whole = Embedder::open(&folder()).unwrap().with_prefix("the ");
    assert_ne!(whole.embed(&["glass cools"]).unwrap().vectors.to_vec(), found);
}

#[test]
fn settings_of_embedders_that_are_not_used_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let warnings = |name: &str, contents: &str| {
        let dir = scratch.path().join(name.replace('/', "-"));
        let embedder = Embedder::open(&copy_with(&dir, name, contents)).unwrap();
        embedder.model().warnings().join(" ")
    };
    assert_eq!(warnings("README.md", ""), "");
    let said = warnings("1_Pooling/config.json", r#"{"pooling_mode": "mean", "odd": 3}"#);
    assert!(said.contains("1_Pooling/config.json") && said.contains("`odd` = 3"), "{said}");
    let said = warnings("sentence_bert_config.json", r#"{"max_seq_length": 8, "odd": 3}"#);
    assert!(said.contains("sentence_bert_config.json") && said.contains("`odd` = 3"), "{said}");
    let more = r#"{"prompts": {"query": "ask: "}, "truncate_dim": 8}"#;
    let said = warnings("config_sentence_transformers.json", more);
    assert!(said.contains("query = \"ask: \"") && said.contains("`truncate_dim` = 8"), "{said}");
    let plain = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"}]"#;
    let said = warnings("modules.json", plain);
    assert!(said.contains("no Normalize") && said.contains("1_Pooling"), "{said}");
}

#[test]
fn without_the_files_of_sentence_transformers_an_encoder_gives_the_mean() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = copy_with(scratch.path(), "unused", "");
    fs::remove_file(dir.join("modules.json")).unwrap();
    let embedder = Embedder::open(&dir).unwrap();
    assert_eq!((embedder.pooling(), embedder.max_tokens()), (Pooling::Mean, 40));
    // The truncation to 8 and the padding that tokenizer.json asks for do not count.
    let long = embedder.embed(&["no ".repeat(37)]).unwrap();
    assert!(long.cut.is_empty());
    assert_eq!(embedder.embed(&["no ".repeat(39)]).unwrap().cut, [0]);
}

#[test]
fn an_encoder_generates_nothing() {
    let Loaded { model, tokenizer, .. } = Loaded::open(&folder(), Weights::AsStored).unwrap();
    let error = Engine::new(&model, &tokenizer, EngineSettings::ONE).err().unwrap();
    assert!(error.to_string().contains("encoder (BertModel)"), "{error}");
    assert!(error.hint().unwrap().contains("lehr embed"));
}
