//! Documents of models whose tokenizer puts special tokens before a text.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Scratch, TOKENIZER, document, rows, says};
use lehr_data::{
    Batch, Loader, LoaderOptions, PretrainLoader, ShardSet, TokenizeOptions, tokenize_to,
};
use lehr_tokenizer::Tokenizer;
use serde_json::{Value, json};

/// The test tokenizer with the special tokens `before` and `after` around a text.
fn framed(before: &[&str], after: &[&str]) -> Tokenizer {
    let special = |name: &&str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let single: Vec<Value> =
        before.iter().map(special).chain([text]).chain(after.iter().map(special)).collect();
    let of = |name: &&str| {
        let id = TOKENIZER.special(name).unwrap();
        ((*name).to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] }))
    };
    let tokens: serde_json::Map<_, _> = before.iter().chain(after).map(of).collect();
    let mut value: Value = serde_json::from_str(&TOKENIZER.to_json()).unwrap();
    value["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                 { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": tokens,
    });
    Tokenizer::from_json(&value.to_string()).unwrap()
}

fn shards(texts: &[&str], tokenizer: &Tokenizer) -> ShardSet {
    let scratch = Scratch::new();
    let documents = texts.iter().map(|text| Ok(document(*text)));
    // Several shards, so that windows and documents also end at their borders.
    let options = TokenizeOptions { shard_tokens: 7 };
    tokenize_to(documents, tokenizer, scratch.path("tokens"), &options, &mut |_| {}).unwrap()
}

const TEXTS: [&str; 4] = ["the cat and the dog", "a", "猫和狗", "dogs in the end"];

fn ids(text: &str) -> Vec<i32> {
    TOKENIZER.encode(text).unwrap().into_iter().map(|id| id as i32).collect()
}

fn special(name: &str) -> i32 {
    TOKENIZER.special(name).unwrap() as i32
}

#[test]
fn a_document_begins_as_a_prompt_does_and_ends_with_one_end() {
    let end = special("<|endoftext|>");
    for (before, after, prefix) in [
        (&["<|user|>"][..], &[][..], &["<|user|>"][..]),
        (&["<|user|>", "<|system|>"], &[], &["<|user|>", "<|system|>"]),
        // ChatGLM-6B has its tokens after the prompt.
        (&[], &["<|user|>", "<|system|>"], &["<|user|>", "<|system|>"]),
        // The end is not doubled.
        (&["<|user|>"], &["<|endoftext|>"], &["<|user|>"]),
        (&[], &["<|endoftext|>"], &[]),
        (&[], &[], &[]),
    ] {
        let tokenizer = framed(before, after);
        let prefix: Vec<i32> = prefix.iter().map(|name| special(name)).collect();
        let set = shards(&TEXTS, &tokenizer);
        let found: Vec<i32> = set.document_prefix().iter().map(|id| *id as i32).collect();
        assert_eq!(found, prefix);
        let n_tokens: usize = TEXTS.iter().map(|t| prefix.len() + ids(t).len() + 1).sum();
        assert_eq!(set.tokens(), n_tokens as u64);
        let document = [&prefix[..], &ids(TEXTS[0]), &[end]].concat();
        let seq_len = prefix.len() + set.tokens() as usize;
        let options = LoaderOptions::sequential(1, seq_len);
        let batch = PretrainLoader::new(set, options).unwrap().batch(0).unwrap();
        assert_eq!(batch.tokens[..document.len()], document);
    }
}

#[test]
fn every_segment_begins_with_the_prefix_and_every_token_after_it_is_a_target_once() {
    let end = special("<|endoftext|>");
    for n_prefix in 1..4 {
        let names = &["<|user|>", "<|system|>", "<|assistant|>"][..n_prefix];
        let prefix: Vec<i32> = names.iter().map(|name| special(name)).collect();
        let set = shards(&TEXTS, &framed(names, &[]));
        for seq_len in n_prefix + 1..40 {
            let options = LoaderOptions::sequential(2, seq_len);
            let loader = PretrainLoader::new(set.clone(), options).unwrap();
            let mut targets = Vec::new();
            for index in 0..loader.batches_per_epoch() {
                let batch = loader.batch(index).unwrap();
                for row in rows(&batch) {
                    for (t, cell) in row.iter().enumerate() {
                        if cell.target == Batch::IGNORE {
                            continue;
                        }
                        targets.push(cell.target);
                        let start = cell.segment_start as usize;
                        let head: Vec<i32> =
                            row[start..start + n_prefix].iter().map(|cell| cell.token).collect();
                        assert_eq!(head, prefix, "before target {t} in rows of {seq_len}");
                        // A target is the next token of its row, unless it is the last.
                        let next = row.get(t + 1).filter(|next| next.segment_start == start as i32);
                        assert!(next.is_none_or(|next| next.token == cell.target));
                    }
                }
            }
            let expected: Vec<i32> =
                TEXTS.iter().flat_map(|text| ids(text).into_iter().chain([end])).collect();
            assert_eq!(targets, expected, "rows of {seq_len}");
            assert_eq!(loader.targets_per_epoch(), expected.len() as u64);
        }
        let short = PretrainLoader::new(set, LoaderOptions::sequential(2, n_prefix));
        says(&short.unwrap_err(), &["rows of", "before a document"]);
    }
}
