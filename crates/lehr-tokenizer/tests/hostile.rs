//! Damaged files of every kind: an error or a tokenizer that works, never a panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;

use lehr_tokenizer::{TiktokenKind, Tokenizer};
use proptest::prelude::*;

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

/// One damage: what is done, where (as a share of the length), and with what.
type Damage = (u8, f64, Vec<u8>);

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let with = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        prop::sample::select(vec![
            "0",
            "-1",
            "4294967295",
            "\"\"",
            "null",
            "[]",
            "{}",
            "\"é\"",
            "##"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec((0_u8..5, 0.0..1.0, with), 1..5)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for (kind, place, with) in damage {
        let at = ((bytes.len() as f64 * place) as usize).min(bytes.len());
        let end = (at + with.len()).min(bytes.len());
        match kind {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..end, with.iter().copied())),
            2 => drop(bytes.splice(at..at, with.iter().copied())),
            3 => drop(bytes.drain(at..end)),
            _ => {
                // Whole stretches, so that tokens and pieces appear twice.
                let stretch = bytes[at..(at + 40).min(bytes.len())].to_vec();
                bytes.extend(stretch);
            }
        }
    }
    bytes
}

/// Uses a tokenizer that could be built from a damaged file.
fn exercise(tokenizer: &Tokenizer) {
    for text in ["", " ", "It is a truth", "滚滚长江 <s> [CLS] <0x41>\n\n\0 🦀 \u{301}ﬁ"] {
        if let Ok(ids) = tokenizer.encode_for_model(text) {
            let _ = tokenizer.decode(&ids);
        }
        let _ = tokenizer.encode_with_special(text);
    }
    let _ = tokenizer.encode_pair_for_model("a", "b");
    let _ = tokenizer.encode_bytes(b"a\xFFb");
    let _ = tokenizer.decode(&[0, 1, 5, u32::MAX]);
    let _ = Tokenizer::from_json(&tokenizer.to_json());
}

/// Every kind as a tokenizer.json, without its long list of tokens so that damage hits the rest.
static SMALL_JSON: LazyLock<Vec<String>> = LazyLock::new(|| {
    let small = |json: serde_json::Value| json.to_string();
    let bpe = serde_json::json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated",
                "invert": false
            },
            {"type": "FixedLength", "length": 5},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<unk>": 0, "a": 1, "##b": 2, "b": 3, "ab": 4, "é": 5, "ab##b": 6},
            "merges": [["a", "b"], ["ab", "##b"]]}});
    let mut prefixed = bpe.clone();
    prefixed["model"]["continuing_subword_prefix"] = "##".into();
    prefixed["model"]["vocab"]["abb"] = 7.into();
    prefixed["model"]["merges"] = serde_json::json!([["ab", "##b"]]);
    let mut unigram = bpe.clone();
    unigram["model"] = serde_json::json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁", -2.0], ["a", -3.5], ["", -1.0], ["It", -1e30]]});
    let word_piece = {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-vocab.txt");
        Tokenizer::open(path).unwrap().to_json()
    };
    vec![small(bpe), small(prefixed), small(unigram), word_piece]
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_json_never_panics(which in 0_usize..4, damage in damage()) {
        let json = damaged(SMALL_JSON[which].clone().into_bytes(), &damage);
        if let Ok(tokenizer) = Tokenizer::from_json(&String::from_utf8_lossy(&json)) {
            exercise(&tokenizer);
        }
    }

    #[test]
    fn damaged_sentencepiece_models_never_panic(
        name in prop::sample::select(vec!["unigram", "bpe_symbols", "bpe_no_prefix", "chatglm"]),
        at_the_end in any::<bool>(),
        mut damage in damage(),
    ) {
        if at_the_end {
            // Where the trainer's and the normaliser's settings lie.
            damage.iter_mut().for_each(|(_, place, _)| *place = 0.9 + 0.1 * *place);
        }
        if let Ok(tokenizer) =
            Tokenizer::from_sentencepiece(&damaged(bytes(&format!("{name}.model")), &damage))
        {
            exercise(&tokenizer);
        }
    }

    #[test]
    fn damaged_ranks_and_words_never_panic(damage in damage()) {
        let ranks = damaged(bytes("small.tiktoken"), &damage);
        let kind = Some(TiktokenKind::Llama3);
        if let Ok(tokenizer) = Tokenizer::from_tiktoken(&String::from_utf8_lossy(&ranks), kind) {
            exercise(&tokenizer);
        }
        let words = damaged(bytes("bert-vocab.txt"), &damage);
        if let Ok(tokenizer) = Tokenizer::from_bert_vocab(&String::from_utf8_lossy(&words)) {
            exercise(&tokenizer);
        }
    }
}

fn refused(json: &str, word: &str) {
    let error = Tokenizer::from_json(json).unwrap_err().to_string();
    assert!(error.contains(word), "{error}");
}

#[test]
fn what_the_library_does_not_check_is_refused() {
    let json = &SMALL_JSON[0];
    refused(&json.replace(r###"["ab","##b"]"###, r#"["ab","ab"]"#), "not in the vocabulary");
    refused(&json.replace(r#""length":5"#, r#""length":0"#), "FixedLength");
    refused(
        &json.replace(
            r#"{"Sequence":{"id":"A","type_id":0}}],"pair""#,
            r#"{"Sequence":{"id":"B","type_id":0}}],"pair""#,
        ),
        "sequence \"B\"",
    );
    refused(
        &json.replace(r#""special_tokens":{"<unk>""#, r#""special_tokens":{"<x>""#),
        "special_tokens",
    );
    refused(&json.replace(r#""ab##b":6"#, r#""ab##b":4294967295"#), "4294967295");
    assert_eq!(Tokenizer::from_json(&SMALL_JSON[1]).unwrap().vocab_size(), 8);
    let merges = r###"["ab","##b"]"###;
    refused(&SMALL_JSON[1].replace(merges, r#"["a","b"]"#), "lacks the prefix");
    // A compiled normalisation that points outside itself.
    let map = |units: &[u32], strings: &[u8]| {
        use base64::Engine;
        let size = u32::try_from(units.len() * 4).unwrap();
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(strings);
        let map = base64::engine::general_purpose::STANDARD.encode(bytes);
        let step = format!(r#"{{"type":"Precompiled","precompiled_charsmap":"{map}"}}"#);
        json.replace(r#"{"type":"Prepend","prepend":"▁"}"#, &step)
    };
    refused(&map(&[5 << 10; 3], b"a\0"), "points outside");
    refused(&map(&[300 << 10; 256], b"a\0"), "points outside");
    let mut leaf = vec![0x8000_0007_u32; 256];
    leaf[1] = 1 << 8;
    refused(&map(&leaf, "é\0".as_bytes()), "names no string");
}

#[test]
fn tokens_made_from_one_another_in_every_way_are_refused() {
    // Runs of one letter of every length: each can be cut anywhere.
    let mut model = Vec::new();
    let mut piece = |text: &str, kind: u8| {
        let length = u8::try_from(text.len()).unwrap();
        let mut message = vec![0x0A];
        if length < 128 {
            message.push(length);
        } else {
            message.extend([length, 1]);
        }
        message.extend(text.as_bytes());
        message.extend([0x18, kind]);
        model.push(0x0A);
        let size = u8::try_from(message.len()).unwrap();
        if size < 128 {
            model.push(size);
        } else {
            model.extend([size, 1]);
        }
        model.extend(message);
    };
    piece("<unk>", 2);
    for length in 1..=240 {
        piece(&"a".repeat(length), 1);
    }
    model.extend([0x12, 2, 0x18, 2]);
    let error = Tokenizer::from_sentencepiece(&model).unwrap_err().to_string();
    assert!(error.contains("too many ways"), "{error}");
}
