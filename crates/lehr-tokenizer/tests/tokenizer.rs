//! Training, encoding, decoding, and the errors of each.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::sync::LazyLock;

use common::{corpus, train};
use lehr_tokenizer::{DEFAULT_SPECIAL_TOKENS, Error, Pattern, Tokenizer, Trainer};
use proptest::prelude::*;

static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| train(Pattern::Gpt2));
static GPT4: LazyLock<Tokenizer> = LazyLock::new(|| train(Pattern::Gpt4));

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (String, Vec<String>) {
    let mut decoder = tokenizer.stream_decoder();
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    (pieces.concat() + &decoder.finish(), pieces)
}

proptest! {
    #[test]
    fn decode_of_encode_gives_any_text_back(text in any::<String>()) {
        for tokenizer in [&*GPT2, &*GPT4] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            prop_assert_eq!(tokenizer.decode_bytes(&ids), text.as_bytes());
        }
    }

    #[test]
    fn text_around_special_names_comes_back_without_special_ids(
        parts in prop::collection::vec(prop_oneof![
            any::<String>(),
            prop::sample::select(DEFAULT_SPECIAL_TOKENS.to_vec()).prop_map(String::from)
        ], 0..6)
    ) {
        let text = parts.concat();
        let ids = GPT4.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| !GPT4.is_special(id)));
        prop_assert_eq!(GPT4.decode(&ids), text);
    }

    #[test]
    fn streamed_text_equals_whole_text(ids in prop::collection::vec(0u32..410, 0..60)) {
        let (text, _) = stream(&GPT4, &ids);
        prop_assert_eq!(text, GPT4.decode(&ids));
    }

    #[test]
    fn a_stream_never_splits_a_character(text in any::<String>()) {
        let ids = GPT4.encode(&text).unwrap();
        let (joined, pieces) = stream(&GPT4, &ids);
        prop_assert_eq!(joined, text.as_str());
        prop_assert!(pieces.iter().all(|piece| text.contains(piece)));
    }

    #[test]
    fn a_batch_equals_its_texts_one_by_one(texts in prop::collection::vec(any::<String>(), 0..8)) {
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let batch = GPT4.encode_batch(&views).unwrap();
        let single: Vec<_> = views.iter().map(|text| GPT4.encode(text).unwrap()).collect();
        prop_assert_eq!(batch, single);
    }
}

#[test]
fn a_character_cut_between_tokens_is_held_back_and_then_whole() {
    let ids = GPT4.encode("🦀").unwrap();
    assert_eq!(ids.len(), 4, "the crab is not in the corpus, so each byte is a token");
    let mut decoder = GPT4.stream_decoder();
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    assert_eq!(pieces, ["", "", "", "🦀"]);
    let mut cut = GPT4.stream_decoder();
    assert_eq!(cut.push(ids[0]), "");
    assert_eq!(cut.finish(), "\u{FFFD}");
}

#[test]
fn batches_beyond_one_group_keep_their_order() {
    let texts: Vec<String> = (0..40).map(|i| format!("{i} ").repeat(20_000)).collect();
    let views: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = GPT4.encode_batch(&views).unwrap();
    let decoded: Vec<String> = batch.iter().map(|ids| GPT4.decode(ids)).collect();
    assert_eq!(decoded, texts);
}

#[test]
fn training_twice_gives_the_same_file() {
    for pattern in [Pattern::Gpt2, Pattern::Gpt4] {
        let (first, second) = (train(pattern), train(pattern));
        assert_eq!(first.to_json(), second.to_json());
        assert_eq!(first.hash(), second.hash());
    }
    assert_ne!(GPT2.hash(), GPT4.hash());
}

#[test]
fn training_learns_words_within_the_asked_size() {
    let large = Trainer::new(2000).train(corpus()).unwrap();
    assert_eq!(GPT4.vocab_size(), 400);
    assert!((401..2000).contains(&large.vocab_size()), "a small corpus has few pairs");
    let ids = large.encode("a single man in possession").unwrap();
    assert!(ids.iter().any(|&id| large.token_bytes(id).unwrap() == b" single"), "{ids:?}");
    assert!(ids.len() < 8, "{ids:?}");
    assert!(large.encode("滚滚长江").unwrap().len() < 6);
}

#[test]
fn gpt4_pattern_splits_as_published() {
    let pieces = |tokenizer: &Tokenizer, text: &str| -> Vec<String> {
        tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.decode(&[id])).collect()
    };
    let digits = Trainer::new(2000).train(["12345 12345 1234567 1234567 45 45"]).unwrap();
    assert_eq!(pieces(&digits, "12345"), ["123", "45"]);
    let breaks =
        Trainer::new(2000).train(["天下。\n\n天下。\n\n", "天下。\n\n大势大势 大势"]).unwrap();
    assert_eq!(pieces(&breaks, "天下。\n\n大势"), ["天下", "。\n\n", "大势"]);
}

#[test]
fn special_names_are_text_unless_asked_for() {
    let end = GPT4.special("<|end|>").unwrap();
    let text = "a<|end|>b";
    assert!(!GPT4.encode(text).unwrap().contains(&end));
    assert!(!GPT4.encode_batch(&[text]).unwrap()[0].contains(&end));
    let special = GPT4.encode_with_special(text).unwrap();
    assert_eq!(special.iter().filter(|&&id| id == end).count(), 1);
    assert_eq!(GPT4.decode(&special), text);
    assert_eq!(GPT4.special("the"), None);
    assert_eq!(GPT4.end_of_document().unwrap(), GPT4.special("<|endoftext|>").unwrap());
}

#[test]
fn byte_lengths_count_the_bytes_of_a_text() {
    let lengths = GPT4.byte_lengths();
    assert_eq!(lengths.len(), GPT4.vocab_size());
    let text = "a truth 滚滚 🦀";
    let ids = GPT4.encode(text).unwrap();
    let total: u32 = ids.iter().map(|&id| lengths[id as usize]).sum();
    assert_eq!(total as usize, text.len());
    assert_eq!(lengths[GPT4.special("<|end|>").unwrap() as usize], 0);
    assert_eq!(GPT4.token_bytes(400), None);
}

#[test]
fn a_saved_tokenizer_is_the_same_after_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    GPT4.save(&path).unwrap();
    let loaded = Tokenizer::from_file(&path).unwrap();
    assert_eq!(loaded.hash(), GPT4.hash());
    for text in corpus() {
        assert_eq!(loaded.encode(&text).unwrap(), GPT4.encode(&text).unwrap());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn truncation_in_the_file_is_not_applied() {
    let mut json: serde_json::Value = serde_json::from_str(&GPT4.to_json()).unwrap();
    json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 3,
        "strategy": "LongestFirst", "stride": 0});
    let loaded = Tokenizer::from_json(&json.to_string()).unwrap();
    let text = "It is a truth universally acknowledged";
    assert_eq!(loaded.encode(text).unwrap(), GPT4.encode(text).unwrap());
}

#[test]
fn empty_corpora_are_refused() {
    for texts in [vec![], vec![""], vec!["", ""]] {
        let error = Trainer::new(300).train(texts).unwrap_err();
        assert!(matches!(error, Error::EmptyCorpus), "{error}");
        assert!(error.hint().unwrap().contains("path"));
    }
}

#[test]
fn a_vocabulary_smaller_than_the_bytes_is_refused() {
    let error = Trainer::new(260).train(["text"]).unwrap_err();
    assert!(error.to_string().contains("vocab_size is 260, expected at least 261"), "{error}");
    assert_eq!(Trainer::new(261).train(["text"]).unwrap().vocab_size(), 261);
}

#[test]
fn special_tokens_that_text_could_produce_are_refused() {
    for (name, reason) in [("", "empty"), ("word", "ordinary word"), ("<pad", "ordinary word")] {
        let special_tokens = vec![name.to_owned()];
        let error = Trainer { special_tokens, ..Trainer::new(300) }.train(["text"]).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.hint().unwrap().contains("<|name|>"));
    }
    let special_tokens = vec!["<|a|>".to_owned(), "<|a|>".to_owned()];
    let error = Trainer { special_tokens, ..Trainer::new(300) }.train(["text"]).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn bad_files_give_errors_with_hints() {
    let json = GPT4.to_json();
    let cut = &json[..json.len() / 2];
    let no_decoder =
        json.replace("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"CTC\"");
    for bad in ["", "{}", "[1, 2]", "{\"version\": \"1.0\"}", cut, &no_decoder] {
        let error = Tokenizer::from_json(bad).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
    let error = Tokenizer::from_file("no/such/tokenizer.json").unwrap_err();
    assert!(error.to_string().contains("no/such/tokenizer.json"), "{error}");
    assert!(error.hint().unwrap().contains("train one"));
}

#[test]
fn a_huge_id_is_refused_before_memory_is_taken() {
    let json = GPT4.to_json().replacen("\"!\":5,", "\"!\":4000000000,", 1);
    let error = Tokenizer::from_json(&json).unwrap_err();
    assert!(error.to_string().contains("4000000000"), "{error}");
}
