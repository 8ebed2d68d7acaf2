//! Tokenizers of every kind against the library they come from: `tools/golden/tokenizers_small.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lehr_tokenizer::{ChatGlm, TiktokenKind, TokenType, Tokenizer, VocabParts};
use proptest::prelude::*;
use serde_json::Value;

static EXPECTED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(&bytes("expected.json")).unwrap());

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(bytes(name)).unwrap()
}

fn cases() -> Vec<&'static str> {
    EXPECTED["cases"].as_array().unwrap().iter().map(|case| case.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Compares plain ids with the reference, before and after saving.
fn check(name: &str, tokenizer: &Tokenizer) {
    let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
    let expected = EXPECTED["ids"][name].as_array().unwrap();
    assert_eq!(expected.len(), cases().len());
    let batch = tokenizer.encode_batch(&cases()).unwrap();
    for ((case, expected), batch) in cases().into_iter().zip(expected).zip(batch) {
        if name == "chatglm" && case.contains("[MASK]") {
            continue; // A symbol of the user there; text of users never becomes one here.
        }
        assert_eq!(tokenizer.encode(case).unwrap(), ids(expected), "{name}: {case:?}");
        assert_eq!(again.encode(case).unwrap(), ids(expected), "{name}, saved: {case:?}");
        assert_eq!(batch, ids(expected), "{name}, batch: {case:?}");
    }
}

/// Checks that texts come back from their ids, whole and streamed. SentencePiece takes U+2581 for a
/// space.
fn check_decoding(tokenizer: &Tokenizer, texts: &[&str]) {
    for text in texts.iter().filter(|text| !text.contains('▁')) {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), *text, "{ids:?}");
        let mut stream = tokenizer.stream_decoder();
        let pieces: String = ids.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(pieces + &stream.finish(), *text);
    }
}

fn sentencepiece(name: &str) -> Tokenizer {
    Tokenizer::open(golden(&format!("{name}.model"))).unwrap()
}

#[test]
fn sentencepiece_unigram_with_rules_and_symbols() {
    let tokenizer = sentencepiece("unigram");
    check("unigram", &tokenizer);
    assert_eq!(tokenizer.vocab_size() as u64, EXPECTED["pieces"]["unigram"].as_u64().unwrap());
    check_decoding(&tokenizer, &["It is a truth", "a 哈哈 b", "<sym>x<sym>"]);
    assert_eq!(tokenizer.suffix_ids(), [2]);
    assert_eq!(tokenizer.special_ids().unk, Some(0));
}

#[test]
fn sentencepiece_unigram_with_bytes() {
    let tokenizer = sentencepiece("unigram_bytes");
    check("unigram_bytes", &tokenizer);
    check_decoding(&tokenizer, &cases());
}

#[test]
fn sentencepiece_bpe() {
    let tokenizer = sentencepiece("bpe");
    check("bpe", &tokenizer);
    check_decoding(&tokenizer, &cases());
    assert_eq!(tokenizer.prefix_ids(), [1]);
    let plain = tokenizer.encode("a").unwrap();
    assert_eq!(tokenizer.encode_for_model("a").unwrap(), [&[1], &plain[..]].concat());
}

#[test]
fn sentencepiece_bpe_with_symbols_of_the_user() {
    let tokenizer = sentencepiece("bpe_symbols");
    check("bpe_symbols", &tokenizer);
    check_decoding(&tokenizer, &cases());
    check_decoding(&tokenizer, &["<sym>", "x<sym><sym> y", "a.b哈哈a.b", "<s>"]);
}

#[test]
fn sentencepiece_bpe_without_a_space_in_front() {
    let tokenizer = sentencepiece("bpe_no_prefix");
    check("bpe_no_prefix", &tokenizer);
    check_decoding(&tokenizer, &cases());
    let turn = tokenizer.special("<turn>").unwrap();
    assert!(!tokenizer.encode("a<turn>b").unwrap().contains(&turn));
    assert!(tokenizer.encode_with_special("a<turn>b").unwrap().contains(&turn));
}

#[test]
fn the_first_chatglm_writes_blanks_as_tokens() {
    let tokenizer = sentencepiece("chatglm");
    check("chatglm", &tokenizer);
    let gmask = tokenizer.special("[gMASK]").unwrap();
    let sop = tokenizer.special("<sop>").unwrap();
    assert_eq!(tokenizer.suffix_ids(), [gmask, sop]);
    check_decoding(&tokenizer, &["a\n\n\tb", "a     b   c", &format!("x{}y", " ".repeat(200))]);
    assert_eq!(tokenizer.token(tokenizer.encode("a   b").unwrap()[1]).unwrap(), "<|blank_3|>");
    let plain = tokenizer.encode("a [gMASK] b").unwrap();
    assert!(!plain.contains(&gmask), "{plain:?}");
    assert!(tokenizer.encode_with_special("a[gMASK]").unwrap().ends_with(&[gmask]));
}

#[test]
fn later_chatglms_add_special_tokens_after_the_pieces() {
    let pieces = u32::try_from(EXPECTED["pieces"]["bpe"].as_u64().unwrap()).unwrap();
    let second = Tokenizer::from_chatglm(&bytes("bpe.model"), ChatGlm::V2).unwrap();
    let third = Tokenizer::from_chatglm(&bytes("bpe.model"), ChatGlm::V3).unwrap();
    check("bpe", &second);
    check("bpe", &third);
    assert_eq!(second.prefix_ids(), [pieces + 1, pieces + 3]);
    assert_eq!(second.special("eop"), Some(pieces + 4));
    assert_eq!(second.vocab_size(), pieces as usize + 5);
    assert_eq!(third.special("<|system|>"), Some(pieces + 5));
    assert_eq!(third.special("<|observation|>"), Some(pieces + 8));
    let injected = third.encode("<|user|> sop [gMASK]").unwrap();
    assert!(injected.iter().all(|&id| id < pieces), "{injected:?}");
}

#[test]
fn a_chatglm_is_known_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("tokenizer.model", &bytes("bpe.model"));
    write("tokenizer_config.json", br#"{"tokenizer_class": "ChatGLMTokenizer"}"#);
    assert_eq!(Tokenizer::open(folder.path()).unwrap().special("<|user|>"), None);
    write("tokenization_chatglm.py", b"special_tokens = ['<|observation|>']");
    assert!(Tokenizer::open(folder.path()).unwrap().special("<|user|>").is_some());
}

#[test]
fn a_configuration_beside_a_sentencepiece_model_is_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("tokenizer.model", &bytes("bpe.model"));
    let pieces = EXPECTED["pieces"]["bpe"].as_u64().unwrap();
    let config = format!(
        r#"{{"add_bos_token": false, "add_eos_token": true, "eos_token": {{"content": "</s>"}},
            "added_tokens_decoder": {{"{pieces}": {{"content": "<|im_end|>", "special": true}}}}}}"#
    );
    write("tokenizer_config.json", config.as_bytes());
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!((tokenizer.add_bos(), tokenizer.suffix_ids()), (false, &[2][..]));
    assert_eq!(tokenizer.special("<|im_end|>").map(u64::from), Some(pieces));
    check("bpe", &tokenizer);
}

#[test]
fn gpt2_files() {
    let tokenizer = Tokenizer::open(golden("vocab.json")).unwrap();
    check("gpt2", &tokenizer);
    check_decoding(&tokenizer, &cases());
    let same = Tokenizer::open(golden("merges.txt")).unwrap();
    assert_eq!(same.to_json(), tokenizer.to_json());
}

#[test]
fn tiktoken_files() {
    let kind = Some(TiktokenKind::Llama3);
    let tokenizer = Tokenizer::from_tiktoken(&text("small.tiktoken"), kind).unwrap();
    check("tiktoken", &tokenizer);
    check_decoding(&tokenizer, &cases());
    assert_eq!(tokenizer.prefix_ids(), [tokenizer.special("<|begin_of_text|>").unwrap()]);
    let error = Tokenizer::open(golden("small.tiktoken")).unwrap_err();
    assert!(error.to_string().contains("ranks"), "{error}");
}

#[test]
fn tekken_files() {
    use std::fmt::Write;
    let mut vocab = String::new();
    for line in text("small.tiktoken").lines() {
        let (token, rank) = line.split_once(' ').unwrap();
        write!(vocab, r#"{{"rank": {rank}, "token_bytes": "{token}"}},"#).unwrap();
    }
    let vocab = vocab.trim_end_matches(',');
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    let json = format!(
        r#"{{"config": {{"pattern": "{pattern}", "default_vocab_size": 9000,
            "version": "v3", "x_size": 1, "default_num_special_tokens": 100}}, "vocab": [{vocab}],
            "x_images": {{}}}}"#
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tekken.json");
    std::fs::write(&path, json).unwrap();
    let tokenizer = Tokenizer::open(&path).unwrap();
    let expected = EXPECTED["ids"]["tiktoken"].as_array().unwrap();
    for (case, expected) in cases().into_iter().zip(expected) {
        let shifted: Vec<u32> = ids(expected).iter().map(|id| id + 100).collect();
        assert_eq!(tokenizer.encode(case).unwrap(), shifted, "{case:?}");
    }
    assert_eq!((tokenizer.prefix_ids(), tokenizer.special("[INST]")), (&[1][..], Some(3)));
    let unused = "tekken.json: 2 keys are not used: x_images, config.x_size";
    assert_eq!(tokenizer.warnings(), [unused]);
}

#[test]
fn bert_files() {
    let tokenizer = Tokenizer::open(golden("bert-vocab.txt")).unwrap();
    check("bert", &tokenizer);
    let framed = EXPECTED["ids"]["bert_framed"].as_array().unwrap();
    let cases = cases().into_iter().filter(|case| !case.contains('['));
    for (case, expected) in cases.zip(framed) {
        assert_eq!(tokenizer.encode_for_model(case).unwrap(), ids(expected), "{case:?}");
    }
    let pair = tokenizer.encode_pair_for_model("It is a truth", "universally 长江").unwrap();
    assert_eq!(pair.ids, ids(&EXPECTED["bert_pair"]["ids"]));
    assert_eq!(pair.type_ids, ids(&EXPECTED["bert_pair"]["type_ids"]));
    check_decoding(&tokenizer, &["it is a truth, universally acknowledged."]);
}

/// The parts that GGUF would keep of a BERT vocabulary, and of byte-level merges.
#[test]
fn parts_of_a_gguf_file_are_the_same_tokenizer() {
    let words = text("bert-vocab.txt");
    let tokens = words.lines().map(|word| match word.strip_prefix("##") {
        _ if word.starts_with('[') && word.len() > 1 => word.to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!("▁{word}"),
    });
    let tokens: Vec<String> = tokens.collect();
    let find = |name: &str| {
        tokens.iter().position(|token| token == name).and_then(|id| u32::try_from(id).ok())
    };
    let mut parts = VocabParts { model: "bert".to_owned(), ..VocabParts::default() };
    parts.special_ids.cls = find("[CLS]");
    parts.special_ids.sep = find("[SEP]");
    parts.special_ids.unk = find("[UNK]");
    parts.special_ids.mask = find("[MASK]");
    parts.tokens.clone_from(&tokens);
    check("bert", &parts.build().unwrap());

    let vocab: Vec<(String, u32)> =
        serde_json::from_slice::<std::collections::HashMap<String, u32>>(&bytes("vocab.json"))
            .unwrap()
            .into_iter()
            .collect();
    let mut parts = VocabParts { model: "gpt2".to_owned(), ..VocabParts::default() };
    parts.pre = Some("gpt-2".to_owned());
    parts.tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        parts.tokens[id as usize] = token;
    }
    parts.merges = text("merges.txt").lines().skip(1).map(str::to_owned).collect();
    parts.token_types = vec![TokenType::Normal; parts.tokens.len()];
    check("gpt2", &parts.clone().build().unwrap());
    parts.pre = Some("no-such".to_owned());
    let error = parts.clone().build().unwrap_err();
    assert!(error.to_string().contains("no-such"), "{error}");
    parts.model = "rwkv".to_owned();
    assert!(parts.clone().build().unwrap_err().to_string().contains("rwkv"));
    parts.token_types.pop();
    assert!(parts.build().unwrap_err().to_string().contains("token_type"));
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json, tekken.json"), "{error}");
    for (name, content, word) in [
        ("a.gguf", &b"GGUF\x03\0\0\0"[..], "GGUF"),
        ("b.bin", b"\x00\x01\x02", "neither JSON"),
        ("c.model", b"\x0A\x03\x0A\x01", "SentencePiece"),
        ("d.json", b"{\"model\": ", "tokenizer.json"),
        ("e.tiktoken", b"IQ== 0\nIg== 0\n", "stands twice"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::open(&path).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.hint().is_some());
    }
}

proptest! {
    #[test]
    fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
            let names = ["bpe", "bpe_symbols", "bpe_no_prefix", "unigram_bytes"];
            let mut all: Vec<Tokenizer> = names.iter().map(|name| sentencepiece(name)).collect();
            all.push(Tokenizer::open(golden("vocab.json")).unwrap());
            all
        });
        for tokenizer in &*TOKENIZERS {
            let ids = tokenizer.encode_bytes(&bytes).unwrap();
            prop_assert_eq!(tokenizer.decode_bytes(&ids), bytes.as_slice());
            let mut stream = tokenizer.stream_decoder();
            let pieces: String = ids.iter().map(|&id| stream.push(id)).collect();
            prop_assert_eq!(pieces + &stream.finish(), tokenizer.decode(&ids));
        }
    }

    #[test]
    fn text_never_becomes_a_special_token(parts in prop::collection::vec(prop_oneof![
        any::<String>(),
        prop::sample::select(vec!["<s>", "</s>", "<turn>", "<sop>", "[gMASK]", "<0x41>", " ", "▁"])
            .prop_map(String::from),
    ], 0..8)) {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
            let names =
                ["bpe", "bpe_symbols", "bpe_no_prefix", "unigram", "unigram_bytes", "chatglm"];
            names.iter().map(|name| sentencepiece(name)).collect()
        });
        let text = parts.concat();
        for (index, tokenizer) in TOKENIZERS.iter().enumerate() {
            let unk = tokenizer.special_ids().unk;
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id) || Some(id) == unk));
            // Models with bytes and without normalisation give back all but U+2581, their space.
            if !text.contains('▁') && [0, 1, 2, 4].contains(&index) {
                prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            }
        }
    }
}

#[test]
fn vocabularies_without_bytes_say_so() {
    let error = sentencepiece("unigram").encode_bytes(b"a\xFF").unwrap_err();
    assert!(error.to_string().contains("no tokens for bytes"), "{error}");
}
