//! Copies of models: what is kept, rewritten, named and refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lehr_infer::convert::{Conversion, SAMPLE, Target, convert};
use lehr_infer::{Embedder, Error, Loaded, ModelFiles, Pooling, tokenizer_of};
use lehr_model::io::gguf::FileType;
use lehr_model::io::{Checkpoint, FloatFormat, ModelSource, RawObject, TensorFile, read_json};
use lehr_model::{Classifier, Config, Model, Weights};
use lehr_tensor::Tensor;
use lehr_tokenizer::chat::ChatTemplate;
use lehr_tokenizer::{Tokenizer, Trainer};
use proptest::prelude::*;
use serde_json::{Value, json};

const FOLDER: Target = Target::Folder(FloatFormat::F32);
const GGUF: Target = Target::Gguf(FileType::F32);

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden").join(family)
}

/// A small embedder: BERT with a tokenizer and a pooling.
fn embedder(dir: &Path) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/embedder");
    fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(from.join(name), dir.join(name)).unwrap();
    }
    dir.to_owned()
}

/// A small Llama with a tokenizer.
fn llama(dir: &Path) -> (PathBuf, Tokenizer) {
    let text = "the cat sees the dog; 12 birds near a river. 你好 été";
    let tokenizer = Trainer::new(300).train([text; 4]).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 304, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "initializer_range": 0.3, "eos_token_id": 0,
    });
    Model::new(Config::from_json(&config).unwrap(), 7).unwrap().save(dir).unwrap();
    tokenizer.save(dir.join("tokenizer.json")).unwrap();
    (dir.to_owned(), tokenizer)
}

fn write(dir: &Path, name: &str, value: &Value) {
    fs::write(dir.join(name), format!("{value:#}\n")).unwrap();
}

fn names<'a>(done: &'a Conversion, what: &str) -> &'a [String] {
    let left = done.left_out.iter().find(|left| left.what.starts_with(what));
    left.map(|left| &left.names[..]).unwrap_or_default()
}

/// Whether a file, or the folder it lies in, is named.
fn is_named(done: &Conversion, file: &str) -> bool {
    let is_it = |left: &String| file == left || file.starts_with(&format!("{left}/"));
    names(done, "files").iter().any(is_it)
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Adds keys, tensors and files to a folder.
fn extend(
    dir: &Path,
    keys: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, usize>,
    files: &BTreeMap<String, Vec<u8>>,
) {
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let more: String = keys.iter().map(|(k, v)| format!("\"{k}\": {v},\n")).collect();
    fs::write(dir.join("config.json"), config.replacen('{', &format!("{{{more}"), 1)).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let read = |name: &str| {
        let shape = checkpoint.shape(name).unwrap().into();
        // The numbers of positions are integers.
        Some((name.to_owned(), checkpoint.tensor(name, shape).ok()?))
    };
    let mut all: Vec<_> = checkpoint.names().filter_map(read).collect();
    for (name, n) in tensors {
        let values: Vec<f32> = (0..*n).map(|i| i as f32 - 1.5).collect();
        all.push((name.clone(), Tensor::from_slice(&values, [*n]).unwrap()));
    }
    let file = TensorFile::new(all, &[("format", "pt")]).unwrap();
    drop(checkpoint);
    let bytes = file.parts().collect::<Vec<_>>().concat();
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever keys, tensors and files a folder has besides, the copy has them or names them.
    #[test]
    fn whatever_a_folder_has_is_kept_or_named(
        keys in proptest::collection::btree_map(
            "x_[a-z]{1,6}", "[1-9][0-9]{0,19}|[0-9]\\.[0-9]{1,20}e-[1-9]", 0..4),
        tensors in proptest::collection::btree_map("x[a-z]{1,4}\\.(weight|bias)", 1usize..6, 0..4),
        files in proptest::collection::btree_map(
            "(|sub/|1_Pooling/|\\.hidden/)x[a-z]{1,5}(\\.(txt|json|bin|py|h5|onnx|jinja)|)",
            proptest::collection::vec(any::<u8>(), 0..20), 0..6),
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let source = embedder(&scratch.path().join("source"));
        extend(&source, &keys, &tensors, &files);
        let copy = scratch.path().join("copy");
        let done = convert(&source, &copy, FOLDER, SAMPLE).unwrap();
        let config = |dir: &Path| {
            RawObject::parse(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
        };
        let (want, found) = (config(&source), config(&copy));
        for key in want.keys() {
            prop_assert_eq!(found.text(key), want.text(key), "{}", key);
        }
        let written = Checkpoint::open(&copy).unwrap();
        for (name, n) in &tensors {
            prop_assert_eq!(written.shape(name), Some(&[*n][..]));
        }
        for (name, bytes) in &files {
            let is_kept = fs::read(copy.join(name)).is_ok_and(|found| found == *bytes);
            prop_assert!(is_kept != is_named(&done, name), "{}: {:?}", name, done.left_out);
        }
        // The same things are named when the copy is a GGUF file.
        let done = convert(&source, &scratch.path().join("x.gguf"), GGUF, SAMPLE).unwrap();
        for key in keys.keys() {
            prop_assert!(names(&done, "keys of config.json").contains(key), "{}", key);
        }
        for name in tensors.keys() {
            prop_assert!(names(&done, "tensors").contains(name), "{}", name);
        }
        for name in files.keys() {
            prop_assert!(is_named(&done, name), "{}: {:?}", name, done.left_out);
        }
    }
}

#[test]
fn families_come_back_from_gguf_with_the_same_weights_and_settings() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2", "glm", "glm4"] {
        let scratch = tempfile::tempdir().unwrap();
        let (file, back) = (scratch.path().join("a.gguf"), scratch.path().join("back"));
        let source = golden(family);
        convert(&source, &file, GGUF, SAMPLE).unwrap();
        convert(&file, &back, FOLDER, SAMPLE).unwrap();
        let (a, b) = (Model::load(&source).unwrap(), Model::load(&back).unwrap());
        assert_eq!(a.params().params().len(), b.params().params().len(), "{family}");
        for (a, b) in a.params().params().iter().zip(b.params().params()) {
            assert_eq!(a.name(), b.name(), "{family}");
            // Norms of Gemma are stored as 1 + w.
            let apart = a.tensor().to_vec().into_iter().zip(b.tensor().to_vec());
            let apart = apart.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-6, "{family}: {}", a.name());
        }
        let (a, b) = (a.config().to_json(), read_json(&back.join("config.json")).unwrap());
        for key in ["rms_norm_eps", "layer_norm_epsilon", "hidden_size", "vocab_size"] {
            assert_eq!(a.get(key), b.get(key), "{family}: {key}");
        }
    }
}

#[test]
fn a_classifier_keeps_its_head_and_labels_in_a_folder_and_is_refused_as_gguf() {
    for family in ["llama", "bert"] {
        let scratch = tempfile::tempdir().unwrap();
        let (source, copy) = (scratch.path().join("source"), scratch.path().join("copy"));
        let labels = ["zebra", "ant", "monkey"].map(str::to_owned).to_vec();
        let model = Model::load(&golden(family)).unwrap();
        Classifier::new(model, labels.clone(), 3).unwrap().save(&source).unwrap();
        let done = convert(&source, &copy, FOLDER, SAMPLE).unwrap();
        let parts: Vec<_> = done.proof.compared.iter().map(|part| part.name()).collect();
        assert!(parts.contains(&"head") && parts.contains(&"labels"), "{parts:?}");
        assert!(Classifier::is_classifier(&copy));
        let (a, b) = (Classifier::load(&source).unwrap(), Classifier::load(&copy).unwrap());
        assert_eq!(b.labels(), labels);
        for (a, b) in a.model().params().params().iter().zip(b.model().params().params()) {
            assert_eq!((a.name(), a.tensor().to_vec()), (b.name(), b.tensor().to_vec()));
        }
        let error = convert(&source, &scratch.path().join("a.gguf"), GGUF, SAMPLE).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("ForSequenceClassification"), "{said}");
        assert!(error.hint().unwrap().contains("folder"), "{:?}", error.hint());
        assert_eq!(entries(scratch.path()), 2);
    }
}

#[test]
fn the_pooling_goes_into_gguf_and_back() {
    let cases = [("mean_tokens", Pooling::Mean, 1), ("cls_token", Pooling::First, 2)];
    for (mode, pooling, number) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let (file, back) = (scratch.path().join("a.gguf"), scratch.path().join("back"));
        let source = embedder(&scratch.path().join("source"));
        let settings = json!({ format!("pooling_mode_{mode}"): true });
        write(&source, "1_Pooling/config.json", &settings);
        convert(&source, &file, GGUF, SAMPLE).unwrap();
        let opened = ModelSource::open(&file).unwrap();
        let metadata = opened.gguf_metadata().unwrap();
        assert_eq!(metadata.integer("bert.pooling_type").unwrap(), Some(number));
        convert(&file, &back, FOLDER, SAMPLE).unwrap();
        assert_eq!(Embedder::open(&back).unwrap().pooling(), pooling);
        // Another GGUF file keeps it.
        let again = scratch.path().join("b.gguf");
        convert(&file, &again, Target::Gguf(FileType::F16), SAMPLE).unwrap();
        assert_eq!(Embedder::open(&again).unwrap().pooling(), pooling);
    }
}

fn ends(model: &Path) -> BTreeSet<u32> {
    Loaded::open(model, Weights::F32).unwrap().end_ids().unwrap().into_iter().collect()
}

#[test]
fn ids_that_end_a_text_go_into_gguf_and_back_and_those_without_a_key_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let (source, tokenizer) = llama(&dir.join("source"));
    let end = tokenizer.special("<|end|>").unwrap();
    let generation = |value: &Value| write(&source, "generation_config.json", value);
    generation(&json!({
        "eos_token_id": [0, 40, end], "temperature": 0.7, "transformers_version": "5",
    }));
    fs::write(source.join("chat_template.jinja"), "{{ messages[0].content }}<|end|>").unwrap();
    let file = dir.join("a.gguf");
    let done = convert(&source, &file, GGUF, SAMPLE).unwrap();
    assert_eq!(ends(&file), ends(&source));
    assert_eq!(names(&done, "settings of generation_config.json"), ["temperature"]);
    let opened = ModelSource::open(&file).unwrap();
    let id = |key: &str| {
        opened.gguf_metadata().unwrap().integer(&format!("tokenizer.ggml.{key}_token_id")).unwrap()
    };
    assert_eq!([id("eos"), id("eot"), id("eom")], [Some(0), Some(end.into()), Some(40)]);
    convert(&file, &dir.join("back"), FOLDER, SAMPLE).unwrap();
    assert_eq!(ends(&dir.join("back")), ends(&source));
    assert_eq!(tokenizer_of(&dir.join("back")).unwrap().end_of_document().unwrap(), 0);
    generation(&json!({ "eos_token_id": [0, 40, end, 50, 60] }));
    let done = convert(&source, &dir.join("b.gguf"), GGUF, SAMPLE).unwrap();
    let lost = names(&done, "ids that end a text");
    assert!(lost.len() == 2 && lost[0].starts_with("50 "), "{lost:?}");
}

#[test]
fn a_tokenizer_that_gguf_cannot_express_is_named_and_nothing_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let (source, tokenizer) = llama(&dir.join("source"));
    let file = source.join("tokenizer.json");
    let original: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
    let mut strips = original.clone();
    let added = json!({"id": 301, "content": "<x>", "single_word": false, "lstrip": true,
        "rstrip": true, "normalized": false, "special": false});
    strips["added_tokens"].as_array_mut().unwrap().push(added);
    let mut lowers = original.clone();
    lowers["normalizer"] = json!({"type": "Lowercase"});
    for (json, expected) in [(&strips, "tokenizer: "), (&lowers, "Lowercase")] {
        fs::write(&file, json.to_string()).unwrap();
        let error = convert(&source, &dir.join("a.gguf"), GGUF, SAMPLE).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.hint().unwrap_or_default().contains("more bits"), "{:?}", error.hint());
        assert_eq!(entries(dir), 1, "the unfinished copy is left");
        // A folder keeps the tokenizer's file.
        convert(&source, &dir.join("copy"), FOLDER, SAMPLE).unwrap();
        assert_eq!(fs::read(dir.join("copy/tokenizer.json")).unwrap(), fs::read(&file).unwrap());
        fs::remove_dir_all(dir.join("copy")).unwrap();
    }
    // Files of published models also lack a normaliser that composes: it is named.
    let mut composes = original;
    composes["normalizer"] = json!({"type": "NFC"});
    fs::write(&file, composes.to_string()).unwrap();
    let done = convert(&source, &dir.join("b.gguf"), GGUF, SAMPLE).unwrap();
    assert!(names(&done, "parts of the tokenizer")[0].contains("NFC"), "{:?}", done.left_out);
}

#[test]
fn a_target_that_exists_is_not_touched() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("there");
    fs::write(&target, "mine").unwrap();
    let error = convert(&golden("llama"), &target, FOLDER, SAMPLE).unwrap_err();
    assert!(matches!(error, Error::TargetExists { .. }), "{error}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    assert_eq!(entries(scratch.path()), 1);
}

#[test]
fn a_model_trained_further_keeps_template_end_ids_and_settings() {
    let scratch = tempfile::tempdir().unwrap();
    let (source, tokenizer) = llama(&scratch.path().join("source"));
    let end = tokenizer.special("<|end|>").unwrap();
    write(&source, "generation_config.json", &json!({"eos_token_id": [0, 9], "top_k": 20}));
    let class = "PreTrainedTokenizerFast";
    let config = json!({"tokenizer_class": class, "chat_template": "{{ 'x' }}", "my_key": 1});
    write(&source, "tokenizer_config.json", &config);
    let text = fs::read_to_string(source.join("config.json")).unwrap();
    let mut config = RawObject::parse(&text).unwrap();
    config.set("my_key", &json!({"a": 1}));
    fs::write(source.join("config.json"), config.to_text()).unwrap();
    let own = Model::load(&source).unwrap().config().to_json();
    let files = ModelFiles::read(&source).unwrap();
    let written = RawObject::parse(&files.config(&own, &tokenizer).unwrap()).unwrap();
    assert_eq!(written.get("my_key"), Some(json!({"a": 1})));
    let others = |files: &ModelFiles, template: Option<&ChatTemplate>| {
        let files = files.others(&tokenizer, template, true).unwrap();
        files.into_iter().collect::<BTreeMap<_, _>>()
    };
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };

    // On more text: everything stays.
    let text = others(&files, None);
    let generation = json(&text["generation_config.json"]);
    assert_eq!((&generation["eos_token_id"], &generation["top_k"]), (&json!([0, 9]), &json!(20)));
    assert_eq!(json(&text["tokenizer_config.json"])["chat_template"], "{{ 'x' }}");
    assert!(!text.contains_key("chat_template.jinja"));

    // On conversations with another template: that one, and the end of its turns.
    let template = ChatTemplate::default();
    let chat = others(&files, Some(&template));
    let ends = json(&chat["generation_config.json"])["eos_token_id"].clone();
    assert!([0, 9, end].iter().all(|id| ends.as_array().unwrap().contains(&json!(id))), "{ends}");
    assert_eq!(chat["chat_template.jinja"], template.source());
    let config = json(&chat["tokenizer_config.json"]);
    assert_eq!((config.get("chat_template"), &config["my_key"]), (None, &json!(1)));

    // A new model: what transformers needs to read the same ids and to end.
    let new = others(&ModelFiles::default(), Some(&template));
    let config = json(&new["tokenizer_config.json"]);
    assert_eq!(config["tokenizer_class"], class);
    for key in ["eos_token", "pad_token"] {
        assert_eq!(config[key], "<|endoftext|>", "{key}");
    }
    assert_eq!(json(&new["generation_config.json"])["eos_token_id"], json!([0, end]));
}
