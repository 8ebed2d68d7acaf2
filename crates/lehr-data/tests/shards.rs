//! Token shards: what is written is read, damage is found, the cache is used.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::path::Path;

use common::{Scratch, TOKENIZER, document, says};
use lehr_data::shard::{Shard, ShardWriter};
use lehr_data::{
    Corpus, Document, Loader, LoaderOptions, PretrainLoader, Progress, ReadOptions, ShardSet,
    TokenizeOptions, tokenize_cached, tokenize_to,
};
use lehr_tokenizer::{Tokenizer, Trainer};

fn documents() -> Vec<Document> {
    ["the cat", "猫和狗", "the dog and the cat", "<|endoftext|> as text"].map(document).to_vec()
}

fn no_progress(_: Progress) {}

/// The documents in a file, counted.
fn corpus(scratch: &Scratch, documents: &[Document]) -> Corpus {
    let line = |document: &Document| serde_json::json!({ "text": document.text }).to_string();
    let lines: Vec<String> = documents.iter().map(line).collect();
    let path = scratch.file("documents.jsonl", lines.join("\n"));
    Corpus::whole(path, &ReadOptions::default(), 1, &mut no_progress).unwrap()
}

/// All tokens of a set, by way of the sequential loader with one long row.
fn stream(set: &ShardSet) -> Vec<i32> {
    let len = set.tokens() as usize;
    let loader = PretrainLoader::new(set.clone(), LoaderOptions::sequential(1, len)).unwrap();
    loader.batch(0).unwrap().tokens
}

fn expected(documents: &[Document]) -> Vec<i32> {
    let end = TOKENIZER.end_of_document().unwrap();
    let ids = |document: &Document| {
        let mut ids = TOKENIZER.encode(&document.text).unwrap();
        ids.push(end);
        ids
    };
    documents.iter().flat_map(ids).map(|id| id as i32).collect()
}

#[test]
fn shards_hold_the_documents_in_order_each_with_its_end() {
    let scratch = Scratch::new();
    let folder = scratch.path("tokens");
    let options = TokenizeOptions { shard_tokens: 10 };
    let mut last = Progress::default();
    let set =
        tokenize_to(documents().into_iter().map(Ok), &TOKENIZER, &folder, &options, &mut |p| {
            last = p;
        });
    let set = set.unwrap();
    assert!(std::fs::read_dir(&folder).unwrap().count() >= 2, "several shards");
    let expected = expected(&documents());
    assert_eq!(stream(&set), expected);
    assert_eq!((set.tokens(), set.documents()), (expected.len() as u64, 4));
    let bytes: usize = documents().iter().map(|document| document.text.len()).sum();
    assert_eq!(set.text_bytes(), bytes as u64);
    assert_eq!((last.documents, last.text_bytes, last.tokens), (4, set.text_bytes(), set.tokens()));
}

#[test]
fn large_vocabularies_use_wide_ids() {
    let mut json: serde_json::Value = serde_json::from_str(&TOKENIZER.to_json()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for id in TOKENIZER.vocab_size()..70_000 {
        vocab.insert(format!("token{id}"), id.into());
    }
    let wide = Tokenizer::from_json(&json.to_string()).unwrap();
    assert_eq!(wide.vocab_size(), 70_000);
    let scratch = Scratch::new();
    let path = scratch.path("00000.tokens");
    let mut writer = ShardWriter::create(&path, &wide).unwrap();
    writer.push(&[69_999, 1], 3).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 128 + 16 + 16);
    let set = ShardSet::open(path.parent().unwrap(), &wide).unwrap();
    assert_eq!(stream(&set)[..2], [69_999, 1]);
}

#[test]
fn a_second_run_uses_the_cache() {
    let scratch = Scratch::new();
    let cache = scratch.path("cache");
    let mut calls = 0;
    let mut run = |documents: &[Document]| {
        let documents = corpus(&scratch, documents);
        let set = tokenize_cached(&documents, &TOKENIZER, &cache, &mut |_| calls += 1).unwrap();
        (stream(&set), calls)
    };
    let (first, calls) = run(&documents());
    let (second, calls_after) = run(&documents());
    assert_eq!(first, second);
    assert_eq!(calls, calls_after, "nothing was tokenised again");
    let (shorter, calls_other) = run(&documents()[1..]);
    assert_eq!(shorter, expected(&documents()[1..]));
    assert!(calls_other > calls, "other documents are another key");
    let names = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(names.len(), 2, "nothing is left over: {names:?}");
}

#[test]
fn documents_that_change_leave_no_cache_behind() {
    let scratch = Scratch::new();
    let cache = scratch.path("cache");
    let before = corpus(&scratch, &documents());
    corpus(&scratch, &documents()[1..]);
    let error = tokenize_cached(&before, &TOKENIZER, &cache, &mut no_progress).unwrap_err();
    says(&error, &["documents.jsonl", "not those of the first reading"]);
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
}

fn written(scratch: &Scratch) -> (std::path::PathBuf, Vec<u8>) {
    let folder = scratch.path("tokens");
    let options = TokenizeOptions::default();
    tokenize_to(documents().into_iter().map(Ok), &TOKENIZER, &folder, &options, &mut no_progress)
        .unwrap();
    let path = folder.join("00000.tokens");
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

fn open_changed(path: &Path, bytes: &[u8]) -> lehr_data::Error {
    // Written anew rather than in place: the original may still be mapped.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    Shard::open(path, &TOKENIZER).unwrap_err()
}

#[test]
fn any_changed_byte_is_found() {
    let scratch = Scratch::new();
    let (path, bytes) = written(&scratch);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let error = open_changed(&path, &changed);
        assert!(error.to_string().contains("00000.tokens"), "byte {at}: {error}");
        assert!(error.hint().is_some(), "byte {at}");
    }
}

#[test]
fn cut_and_lengthened_shards_are_found() {
    let scratch = Scratch::new();
    let (path, bytes) = written(&scratch);
    for length in [0, 1, 127, 128, bytes.len() / 2, bytes.len() - 1] {
        says(&open_changed(&path, &bytes[..length]), &["cut"]);
    }
    says(&open_changed(&path, &[&bytes[..], b"more"].concat()), &["expected"]);
    says(&open_changed(&path, &b"another kind of file".repeat(20)), &["does not begin as"]);
}

#[test]
fn shards_of_another_tokenizer_are_refused() {
    let scratch = Scratch::new();
    let (path, _) = written(&scratch);
    let other = Trainer::new(290).train(["other words of another text"]).unwrap();
    let error = Shard::open(&path, &other).unwrap_err();
    says(&error, &[&TOKENIZER.hash()[..12], &other.hash()[..12]]);
    assert!(error.hint().unwrap().contains("tokenise the text again"));
}

#[test]
fn folders_with_shards_are_not_written_over() {
    let scratch = Scratch::new();
    let (path, bytes) = written(&scratch);
    let options = TokenizeOptions::default();
    let again = [Ok(document("other"))];
    let folder = path.parent().unwrap();
    let error = tokenize_to(again, &TOKENIZER, folder, &options, &mut no_progress).unwrap_err();
    says(&error, &["writing", "00000.tokens"]);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_folder_without_shards_is_refused() {
    let scratch = Scratch::new();
    let folder = scratch.file("empty/readme.txt", "x");
    let error = ShardSet::open(folder.parent().unwrap(), &TOKENIZER).unwrap_err();
    says(&error, &["found no tokenised document"]);
    says(&ShardSet::open(scratch.path("none"), &TOKENIZER).unwrap_err(), &["reading", "none"]);
}

#[test]
fn a_tokenizer_without_an_end_of_document_is_refused() {
    let scratch = Scratch::new();
    let special_tokens = vec!["<|x|>".to_owned()];
    let bare = Trainer { special_tokens, ..Trainer::new(300) }.train(["text"]).unwrap();
    let error = tokenize_cached(
        &corpus(&scratch, &documents()),
        &bare,
        scratch.path("c"),
        &mut no_progress,
    );
    says(&error.unwrap_err(), &["ends a document", "<|endoftext|>"]);
}
