//! The split by sources: no neighbour of a held-out document is trained on, the share is right, and
//! what was held out is reported.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::Scratch;
use lehr_data::{Corpus, ReadOptions, SplitBy, SplitOptions, TextSplit, read_documents};
use proptest::prelude::*;

const LEAST: usize = 40;

fn options() -> ReadOptions {
    ReadOptions { document_bytes: LEAST, ..ReadOptions::default() }
}

fn split(path: &Path, fraction: f64, seed: u64) -> TextSplit {
    let split = SplitOptions { fraction, seed, by: SplitBy::Source };
    Corpus::split(path, &options(), split, &mut |_| ()).unwrap()
}

fn texts(corpus: &Corpus) -> Vec<String> {
    corpus.read().unwrap().map(|document| document.unwrap().text).collect()
}

/// The text of a file: paragraphs that are documents, each with its own words.
fn book(name: &str, n: usize) -> String {
    let paragraph = |i| format!("{name} paragraph {i} with enough words for a document.\n\n");
    (0..n).map(paragraph).collect()
}

/// The documents of each file, by the name of the file.
fn files(path: &Path) -> HashMap<String, Vec<String>> {
    let mut files: HashMap<String, Vec<String>> = HashMap::new();
    for document in read_documents(path, &options()).unwrap() {
        let (name, _) = document.id.split_once('#').unwrap();
        files.entry(name.to_owned()).or_default().push(document.text);
    }
    files
}

/// Checks that no neighbour of a held-out document is trained on, that sides have no document in
/// common, and that the report has the numbers of the sides.
fn check(path: &Path, found: &TextSplit) {
    let (train, held) = (texts(&found.training), texts(&found.validation));
    let side: HashMap<&str, bool> = train
        .iter()
        .map(|text| (text.as_str(), true))
        .chain(held.iter().map(|text| (text.as_str(), false)))
        .collect();
    assert!(train.iter().all(|text| side[text.as_str()]), "a held-out text is trained on");
    let mut n_dropped = 0;
    for documents in files(path).values() {
        let sides: Vec<_> = documents.iter().map(|text| side.get(text.as_str()).copied()).collect();
        n_dropped += sides.iter().filter(|side| side.is_none()).count() as u64;
        for pair in sides.windows(2) {
            let is_both = pair.contains(&Some(true)) && pair.contains(&Some(false));
            assert!(!is_both, "a neighbour of a held-out document is trained on");
        }
    }
    let report = &found.held_out;
    assert_eq!(report.training.documents, train.len() as u64);
    assert_eq!(report.held_out.documents, held.len() as u64);
    assert_eq!(report.margin.documents + report.copies.documents, n_dropped);
    let in_sources: u64 = report.sources.iter().map(|s| s.held_out.documents).sum();
    assert_eq!(in_sources, held.len() as u64);
    let bytes = |texts: &[String]| texts.iter().map(|text| text.len() as u64).sum::<u64>();
    assert_eq!((report.training.bytes, report.held_out.bytes), (bytes(&train), bytes(&held)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_neighbour_of_a_held_out_document_is_trained_on(
        sizes in prop::collection::vec(1usize..60, 1..8),
        fraction in 0.02f64..0.6,
        seed in any::<u64>(),
    ) {
        let scratch = Scratch::new();
        for (i, n) in sizes.iter().enumerate() {
            scratch.file(&format!("d/{i:02}.txt"), book(&format!("{i}"), *n));
        }
        let path = scratch.path("d");
        let found = split(&path, fraction, seed);
        check(&path, &found);
        let n = sizes.iter().sum::<usize>();
        if n > 2 {
            prop_assert!(!texts(&found.training).is_empty());
            prop_assert!(!texts(&found.validation).is_empty());
        }
    }
}

#[test]
fn one_book_gives_runs_of_the_right_share() {
    let scratch = Scratch::new();
    for (n, fraction) in [(340, 0.05), (1000, 0.02), (4000, 0.1), (200, 0.5)] {
        let path = scratch.file("book.txt", book("a", n));
        let found = split(&path, fraction, 7);
        check(&path, &found);
        let share = found.held_out.share;
        assert!((share / fraction - 1.0).abs() < 0.05, "{share} of {n}, expected {fraction}");
        let [source] = &found.held_out.sources[..] else { panic!("{:?}", found.held_out) };
        assert_eq!((source.file.as_str(), source.all.documents), ("book.txt", n as u64));
        assert!(source.runs >= 4, "{source:?}");
        assert!(source.margin.documents <= 2 * source.runs);
        let dropped = source.margin.bytes as f64 / source.all.bytes as f64;
        assert!(dropped < fraction, "{dropped} is dropped");
    }
}

#[test]
fn many_files_are_held_out_whole_and_stay_when_others_are_added() {
    let scratch = Scratch::new();
    let write = |range: std::ops::Range<usize>| {
        for i in range {
            scratch.file(&format!("d/{i:04}.txt"), book(&format!("{i}"), 1 + i % 5));
        }
    };
    write(0..600);
    let path = scratch.path("d");
    let first = split(&path, 0.1, 7);
    check(&path, &first);
    assert!(first.held_out.sources.iter().all(lehr_data::HeldOutSource::is_whole));
    assert_eq!(first.held_out.margin.documents, 0);
    assert!((0.05..0.15).contains(&first.held_out.share), "{}", first.held_out.share);
    let [held_before, trained_before] = [&first.validation, &first.training].map(texts);
    write(600..700);
    let second = split(&path, 0.1, 7);
    let [held, trained] = [&second.validation, &second.training].map(texts);
    assert!(held_before.iter().all(|text| held.contains(text)));
    assert!(trained_before.iter().all(|text| trained.contains(text)));
}

#[test]
fn another_book_does_not_move_the_runs_of_the_first() {
    let scratch = Scratch::new();
    let one = scratch.file("d/m.txt", book("m", 300));
    let alone = texts(&split(&one, 0.1, 3).validation);
    // Before and after it in the order of the files.
    scratch.file("d/a.txt", book("a", 200));
    scratch.file("d/z.txt", book("z", 250));
    let all = texts(&split(&scratch.path("d"), 0.1, 3).validation);
    let of_first: Vec<_> = all.into_iter().filter(|text| text.starts_with('m')).collect();
    assert_eq!(of_first, alone);
    let other = texts(&split(&one, 0.1, 4).validation);
    assert_ne!(other, alone, "another seed");
}

#[test]
fn copies_of_held_out_documents_and_of_their_neighbours_are_not_trained_on() {
    let scratch = Scratch::new();
    let text = book("a", 200);
    let one = scratch.file("d/a.txt", &text);
    let found = split(&one, 0.1, 5);
    let dropped = found.held_out.margin;
    assert!(dropped.documents > 0);
    // The same book with another beginning, and some of its documents as records.
    scratch.file("d/b.txt", format!("{}{text}", book("other beginning", 3)));
    let record = |text: &str| serde_json::json!({ "text": text }).to_string();
    let own = (0..40).map(|i| record(&format!("record {i}")));
    let copied = texts(&found.validation).into_iter().map(|text| record(&text));
    scratch.file("d/c.jsonl", own.chain(copied).collect::<Vec<_>>().join("\n"));
    let both = split(&scratch.path("d"), 0.1, 5);
    let (train, held) = (texts(&both.training), texts(&both.validation));
    assert!(train.iter().all(|text| !held.contains(text)));
    let documents = &files(&one)["a.txt"];
    let held_out = texts(&found.validation);
    for (i, text) in documents.iter().enumerate() {
        let beside = [i.checked_sub(1), Some(i + 1)].into_iter().flatten();
        let is_beside = beside.filter_map(|i| documents.get(i)).any(|text| held_out.contains(text));
        assert!(!(is_beside || held_out.contains(text)) || !train.contains(text), "{text}");
    }
    assert!(both.held_out.copies.documents >= held_out.len() as u64);
}

#[test]
fn files_of_white_space_are_no_sources() {
    let scratch = Scratch::new();
    scratch.file("d/a.txt", " \n\n ");
    scratch.file("d/b.txt", book("b", 60));
    scratch.file("d/c.txt", "\n");
    let path = scratch.path("d");
    for seed in 0..20 {
        let found = split(&path, 0.1, seed);
        check(&path, &found);
        assert_eq!(found.held_out.held_out.documents, 6, "seed {seed}");
    }
}
