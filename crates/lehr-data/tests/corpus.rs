//! Documents read anew for every pass: the same split as in memory, samples, changes found.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::path::Path;

use common::{Scratch, says};
use lehr_data::{
    Corpus, ReadOptions, SplitBy, SplitOptions, TextSplit, read_documents, split_by_text,
};
use proptest::prelude::*;

fn split(path: &Path, fraction: f64, seed: u64) -> (Corpus, Corpus) {
    split_by(path, fraction, seed, SplitBy::Source)
}

fn split_by(path: &Path, fraction: f64, seed: u64, by: SplitBy) -> (Corpus, Corpus) {
    let split = SplitOptions { fraction, seed, by };
    let split = Corpus::split(path, &ReadOptions::default(), split, &mut |_| ()).unwrap();
    let TextSplit { training, validation, .. } = split;
    (training, validation)
}

fn texts(corpus: &Corpus) -> Vec<String> {
    corpus.read().unwrap().map(|document| document.unwrap().text).collect()
}

fn jsonl(scratch: &Scratch, texts: &[String]) -> std::path::PathBuf {
    let lines: Vec<String> =
        texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    scratch.file("d.jsonl", lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_streamed_split_is_that_of_texts_in_memory(
        texts_in in prop::collection::vec("[a-d]{1,3}", 1..30),
        fraction in 0.01f64..0.99,
        seed in any::<u64>(),
    ) {
        let scratch = Scratch::new();
        let path = jsonl(&scratch, &texts_in);
        let (train, validation) = split(&path, fraction, seed);
        let expected = split_by_text(texts_in, Clone::clone, fraction, seed).unwrap();
        prop_assert_eq!((&texts(&train), &texts(&validation)), (&expected.0, &expected.1));
        let bytes = |texts: &[String]| texts.iter().map(|text| text.len() as u64).sum::<u64>();
        // Records are split by documents either way.
        let by_document = split_by(&path, fraction, seed, SplitBy::Document);
        prop_assert_eq!(by_document.0.hash(), train.hash());
        prop_assert_eq!(by_document.1.hash(), validation.hash());
        for (corpus, expected) in [(train, expected.0), (validation, expected.1)] {
            prop_assert_eq!(corpus.documents(), expected.len() as u64);
            prop_assert_eq!(corpus.text_bytes(), bytes(&expected));
        }
    }
}

#[test]
fn documents_of_a_text_file_are_split_one_by_one_on_request() {
    let scratch = Scratch::new();
    let book: String =
        (0..400).map(|i| format!("Paragraph {i} of a book.\n\n").repeat(9)).collect();
    let path = scratch.file("book.txt", book);
    let all = read_documents(&path, &ReadOptions::default()).unwrap();
    let all: Vec<String> = all.into_iter().map(|document| document.text).collect();
    let (train, validation) = split_by(&path, 0.2, 3, SplitBy::Document);
    let expected = split_by_text(all, Clone::clone, 0.2, 3).unwrap();
    assert_eq!((texts(&train), texts(&validation)), expected);
}

#[test]
fn a_corpus_has_the_documents_of_its_files_and_a_hash_of_their_texts() {
    let scratch = Scratch::new();
    let book = "A line of a book.\n\n".repeat(1000);
    let path = scratch.file("book/a.txt", &book);
    scratch.file("book/b.txt", "short");
    let options = ReadOptions::default();
    let whole = |path: &Path| Corpus::whole(path, &options, 3, &mut |_| ()).unwrap();
    let folder = path.parent().unwrap();
    let corpus = whole(folder);
    let expected: Vec<String> =
        read_documents(folder, &options).unwrap().into_iter().map(|d| d.text).collect();
    assert_eq!(texts(&corpus), expected);
    assert_eq!(corpus.cut_files(), 1, "one file has several documents");
    let copy = jsonl(&scratch, &expected);
    assert_eq!(whole(&copy).hash(), corpus.hash(), "the same texts from another file");
    assert_ne!(whole(&path).hash(), corpus.hash());
    let (train, validation) = split(folder, 0.2, 3);
    assert_ne!(train.hash(), validation.hash());
}

#[test]
fn a_sample_has_about_the_size_asked_for_and_is_the_same_again() {
    let scratch = Scratch::new();
    let lines: Vec<String> = (0..2000).map(|i| format!("document {i} with some words")).collect();
    let (train, _) = split(&jsonl(&scratch, &lines), 0.1, 5);
    let sample = |bytes| -> Vec<String> {
        train.sample(bytes).unwrap().map(|document| document.unwrap().text).collect()
    };
    let quarter = sample(train.text_bytes() / 4);
    let n = quarter.len() as f64 / train.documents() as f64;
    assert!((0.2..0.3).contains(&n), "{n}");
    assert_eq!(sample(train.text_bytes() / 4), quarter);
    assert_eq!(sample(train.text_bytes()), texts(&train));
    assert_eq!(sample(u64::MAX), texts(&train));
}

#[test]
fn files_that_change_between_two_passes_are_refused() {
    let scratch = Scratch::new();
    let lines: Vec<String> = (0..50).map(|i| format!("text {i}")).collect();
    let (train, _) = split(&jsonl(&scratch, &lines), 0.1, 5);
    jsonl(&scratch, &[&lines[..], &["one more".to_owned()]].concat());
    let error = train.read().unwrap().find_map(Result::err).unwrap();
    says(&error, &["d.jsonl", "not those of the first reading"]);
}

#[test]
fn no_documents_and_wrong_fractions_are_refused() {
    let scratch = Scratch::new();
    let path = scratch.file("e.jsonl", "");
    let options = ReadOptions::default();
    let error = Corpus::whole(&path, &options, 1, &mut |_| ()).unwrap_err();
    says(&error, &["found no document"]);
    let split = SplitOptions { fraction: 1.0, seed: 1, by: SplitBy::Source };
    let error = Corpus::split(&path, &options, split, &mut |_| ()).unwrap_err();
    says(&error, &["fraction"]);
}
