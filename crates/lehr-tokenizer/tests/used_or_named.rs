//! What the files of a tokenizer say is used, or refused or named in a warning.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::LazyLock;

use common::train;
use lehr_tokenizer::{Pattern, TokenType, Tokenizer, VocabParts};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A byte-level tokenizer with steps of all sections.
static FILE: LazyLock<Value> = LazyLock::new(|| {
    let mut file: Value = serde_json::from_str(&train(Pattern::Gpt4).to_json()).unwrap();
    file["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"String": "\u{7}"}, "content": ""}]});
    let end = json!({"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]});
    file["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": end}});
    file
});

fn open(files: &[(&str, &Value)]) -> lehr_tokenizer::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    Tokenizer::open(folder.path())
}

/// Opens the tokenizer with a `tokenizer_config.json`.
fn with_config(config: &Value) -> Tokenizer {
    open(&[("tokenizer.json", &FILE), ("tokenizer_config.json", config)]).unwrap()
}

fn names(tokenizer: &Tokenizer, word: &str) -> bool {
    tokenizer.warnings().iter().any(|text| text.contains(word))
}

/// Adds `key` to the object `which` of a file.
fn add(file: &Value, which: usize, key: &str, value: Value) -> Value {
    fn walk(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    if !["vocab", "special_tokens"].contains(&key.as_str()) {
                        walk(value, format!("{at}/{key}"), found);
                    }
                }
                found.push(at);
            }
            Value::Array(members) => {
                let members = members.iter().enumerate();
                members.for_each(|(index, member)| walk(member, format!("{at}/{index}"), found));
            }
            _ => {}
        }
    }
    let mut places = Vec::new();
    walk(file, String::new(), &mut places);
    let mut file = file.clone();
    let object = file.pointer_mut(&places[which % places.len()]).unwrap();
    object.as_object_mut().unwrap().insert(key.to_owned(), value);
    file
}

fn values() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(true),
        json!(false),
        json!(1),
        json!("x"),
        json!([1]),
        json!({}),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_further_key_anywhere_in_a_tokenizer_json_is_named(
        which in any::<prop::sample::Index>(),
        key in "x_[a-z]{1,8}",
        value in values(),
    ) {
        let file = add(&FILE, which.index(1000), &key, value);
        match Tokenizer::from_json(&file.to_string()) {
            Ok(tokenizer) => {
                prop_assert!(names(&tokenizer, &key), "{key}: {:?}", tokenizer.warnings());
                prop_assert_eq!(tokenizer.encode("a truth").unwrap(), plain("a truth"));
            }
            Err(error) => prop_assert!(error.to_string().contains(&key), "{}", error),
        }
    }

    #[test]
    fn further_keys_of_the_other_files_are_named(
        keys in prop::collection::btree_map("x_[a-z]{1,8}", values(), 1..4),
        token in "x_[a-z]{1,8}",
        file in prop::sample::select(vec!["tokenizer_config.json", "special_tokens_map.json"]),
    ) {
        let mut config = json!({"bos_token": {"content": "<|endoftext|>", "special": true}});
        config["bos_token"][&token] = json!(true);
        for (key, value) in &keys {
            config[key] = value.clone();
        }
        let tokenizer = open(&[("tokenizer.json", &FILE), (file, &config)]).unwrap();
        for key in keys.keys().chain([&token]) {
            prop_assert!(names(&tokenizer, key), "{key}: {:?}", tokenizer.warnings());
        }
    }

    #[test]
    fn a_further_field_of_a_sentencepiece_model_is_named(
        part in 0_usize..3,
        number in 60_u64..500,
        value in 0_u8..100,
    ) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bpe.model");
        let mut bytes = std::fs::read(path).unwrap();
        let field = [varint(number << 3), vec![value]].concat();
        // The model itself, its training and its normalisation. Messages are merged.
        match part {
            0 => bytes.extend(field),
            part => bytes.extend([varint((part as u64 + 1) << 3 | 2), varint(field.len() as u64),
                field].concat()),
        }
        let tokenizer = Tokenizer::from_sentencepiece(&bytes).unwrap();
        prop_assert!(names(&tokenizer, &number.to_string()), "{:?}", tokenizer.warnings());
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7F {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn plain(text: &str) -> Vec<u32> {
    static PLAIN: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::from_json(&FILE.to_string()).unwrap());
    PLAIN.encode(text).unwrap()
}

#[test]
fn files_as_published_give_no_warning() {
    let config = json!({
        "add_bos_token": false, "add_prefix_space": false, "additional_special_tokens": ["<|end|>"],
        "bos_token": null, "chat_template": "x", "clean_up_tokenization_spaces": false,
        "eos_token": "<|endoftext|>", "errors": "replace", "model_max_length": 131072,
        "pad_token": {"content": "<|endoftext|>", "lstrip": false, "__type": "AddedToken"},
        "split_special_tokens": false, "tokenizer_class": "Qwen2Tokenizer", "unk_token": null,
        "legacy": true, "padding_side": "left"});
    assert_eq!(with_config(&config).warnings(), [] as [String; 0]);
    for part in ["truncation", "padding"] {
        let mut file = FILE.clone();
        file[part] = match part {
            "truncation" => {
                json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                "stride": 0})
            }
            _ => json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}),
        };
        let tokenizer = Tokenizer::from_json(&file.to_string()).unwrap();
        assert_eq!(tokenizer.warnings(), [] as [String; 0]);
        assert_eq!(tokenizer.encode("a truth universally").unwrap(), plain("a truth universally"));
    }
}

#[test]
fn settings_that_the_tokenizer_contradicts_are_named() {
    for (key, value) in [
        ("add_bos_token", json!(true)),
        ("add_eos_token", json!(false)),
        ("add_prefix_space", json!(true)),
        ("do_lower_case", json!(true)),
        ("truncation_side", json!("left")),
        ("errors", json!("strict")),
        ("sp_model_kwargs", json!({"enable_sampling": true})),
        ("mask_token", json!("[MASK]")),
        ("additional_special_tokens", json!(7)),
        ("added_tokens_decoder", json!({"x": {"content": "<|a|>"}})),
    ] {
        let mut config = json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"});
        config[key] = value;
        let tokenizer = with_config(&config);
        assert!(names(&tokenizer, key), "{key}: {:?}", tokenizer.warnings());
        assert_eq!(tokenizer.warnings().len(), 1, "{:?}", tokenizer.warnings());
    }
    let map = json!({"eos_token": "<|end|>"});
    let config = json!({"eos_token": "<|endoftext|>"});
    let files = [
        ("tokenizer.json", &*FILE),
        ("tokenizer_config.json", &config),
        ("special_tokens_map.json", &map),
    ];
    let tokenizer = open(&files).unwrap();
    assert!(names(&tokenizer, "special_tokens_map.json: eos_token is \"<|end|>\""));
    assert_eq!(tokenizer.special_ids().eos, tokenizer.special("<|endoftext|>"));
}

#[test]
fn kinds_of_steps_that_are_not_known_are_refused_by_name() {
    for section in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"] {
        for within in [false, true] {
            let mut file = FILE.clone();
            let key = match section {
                "normalizer" => "normalizers",
                "pre_tokenizer" => "pretokenizers",
                "decoder" => "decoders",
                _ => "processors",
            };
            let step = json!({"type": "Magic"});
            if section == "model" {
                file["model"]["type"] = json!("Magic");
            } else if within {
                file[section] = json!({"type": "Sequence", key: [step]});
            } else {
                file[section] = step;
            }
            let error = Tokenizer::from_json(&file.to_string()).unwrap_err().to_string();
            assert!(error.contains("Magic") && error.contains(section), "{error}");
        }
    }
}

#[test]
fn dropout_is_for_training_and_named() {
    let mut file = FILE.clone();
    file["model"]["dropout"] = json!(0.5);
    let tokenizer = Tokenizer::from_json(&file.to_string()).unwrap();
    assert!(names(&tokenizer, "dropout"));
    for _ in 0..20 {
        assert_eq!(tokenizer.encode("a truth universally").unwrap(), plain("a truth universally"));
    }
}

/// The tokenizer without `<|end|>` among its added tokens: an ordinary word of the vocabulary.
fn without_end() -> (Value, u32) {
    let mut file = FILE.clone();
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    let at = tokens.iter().position(|token| token["content"] == "<|end|>").unwrap();
    let id = tokens.remove(at)["id"].clone();
    file["model"]["vocab"]["<|end|>"] = id.clone();
    (file, u32::try_from(id.as_u64().unwrap()).unwrap())
}

#[test]
fn tokens_that_any_file_declares_are_special() {
    let (file, id) = without_end();
    let usual = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let entry = json!({"content": "<|end|>", "special": true});
    let added = json!({"<|end|>": id});
    let of = |key: &str, value: Value| json!({ key: value });
    let listed = of("added_tokens_decoder", json!({id.to_string(): entry}));
    let all: Vec<Vec<(&str, Value)>> = vec![
        vec![("tokenizer_config.json", listed)],
        vec![("tokenizer_config.json", of("additional_special_tokens", json!(["<|end|>"])))],
        vec![("tokenizer_config.json", of("extra_special_tokens", json!({"end": "<|end|>"})))],
        vec![("tokenizer_config.json", of("eos_token", json!("<|end|>")))],
        vec![("special_tokens_map.json", of("pad_token", json!({"content": "<|end|>"})))],
        vec![("tokenizer_config.json", of("image_token", json!("<|end|>")))],
        vec![
            ("tokenizer_config.json", usual),
            ("added_tokens.json", added),
            ("special_tokens_map.json", of("additional_special_tokens", json!(["<|end|>"]))),
        ],
    ];
    for files in &all {
        let mut given = vec![("tokenizer.json", &file)];
        given.extend(files.iter().map(|(name, value)| (*name, value)));
        let tokenizer = open(&given).unwrap();
        assert_eq!(tokenizer.warnings(), [] as [String; 0], "{files:?}");
        assert_eq!(tokenizer.special("<|end|>"), Some(id), "{files:?}");
        assert!(!tokenizer.encode("a<|end|>b").unwrap().contains(&id), "{files:?}");
        assert!(tokenizer.encode_with_special("a<|end|>b").unwrap().contains(&id), "{files:?}");
        // A checkpoint keeps only tokenizer.json.
        let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
        assert_eq!(again.special("<|end|>"), Some(id));
    }
}

#[test]
fn tokens_that_end_and_begin_texts_are_special_though_the_file_says_no() {
    let mut file = FILE.clone();
    for token in file["added_tokens"].as_array_mut().unwrap() {
        token["special"] = json!(false);
    }
    let config = json!({"eos_token": "<|end|>", "pad_token": "the"});
    let files = [("tokenizer.json", &file), ("tokenizer_config.json", &config)];
    let tokenizer = open(&files).unwrap();
    let end = tokenizer.special("<|end|>").unwrap();
    assert!(!tokenizer.encode("<|end|>").unwrap().contains(&end));
    assert!(names(&tokenizer, "pad_token is \"the\""), "{:?}", tokenizer.warnings());
    assert_eq!(tokenizer.special("<|user|>"), None, "nothing gives it a purpose");
}

#[test]
fn settings_of_declared_tokens_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::copy(golden.join("bpe.model"), folder.path().join("tokenizer.model")).unwrap();
    let n = Tokenizer::open(folder.path()).unwrap().vocab_size();
    let config = json!({"added_tokens_decoder": {
        n.to_string(): {"content": "<sep>", "lstrip": true, "rstrip": true, "normalized": false},
        (n + 1).to_string(): {"content": "qzq", "single_word": true, "normalized": false}}});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.warnings(), [] as [String; 0]);
    let (sep, word) = (n as u32, n as u32 + 1);
    let ids = |text: &str| tokenizer.encode_with_special(text).unwrap();
    assert_eq!(ids("<sep>   <sep>"), [sep, sep]);
    assert!(ids("x qzq y").contains(&word) && !ids("xqzqy").contains(&word));
}

#[test]
fn a_token_without_its_declared_id_is_named() {
    let config = json!({"added_tokens_decoder": {"9000": {"content": "<|new|>", "special": true}}});
    let tokenizer = with_config(&config);
    assert!(names(&tokenizer, "\"<|new|>\" has the id 9000"), "{:?}", tokenizer.warnings());
    assert_eq!(
        tokenizer.special("<|new|>").map(|id| id as usize + 1),
        Some(tokenizer.vocab_size())
    );
}

#[test]
fn a_gguf_vocabulary_that_does_not_say_how_to_cut_text_is_named() {
    let tokens: Vec<String> = ["a", "b", "ab", "<|end|>"].map(str::to_owned).to_vec();
    let kinds = [TokenType::Normal, TokenType::Normal, TokenType::Normal, TokenType::UserDefined];
    let mut parts = VocabParts { model: "gpt2".to_owned(), tokens, ..VocabParts::default() };
    parts.token_types = kinds.to_vec();
    parts.merges = vec!["a b".to_owned()];
    let tokenizer = parts.clone().build().unwrap();
    assert!(names(&tokenizer, "tokenizer.ggml.pre is missing"), "{:?}", tokenizer.warnings());
    assert!(tokenizer.special("<|end|>").is_some(), "its name says that it ends a turn");
    parts.pre = Some("qwen2".to_owned());
    assert_eq!(parts.clone().build().unwrap().warnings(), [] as [String; 0]);
    parts.add_space_prefix = Some(true);
    parts.lowercase = Some(true);
    let tokenizer = parts.build().unwrap();
    assert!(names(&tokenizer, "2 keys are not used: tokenizer.ggml.add_space_prefix"));
}
