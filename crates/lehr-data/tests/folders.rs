//! Folders of data sets: cards, splits, files that cannot be read, and the kind of the data.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Scratch, says};
use lehr_data::{
    DatasetKind, Part, ReadOptions, Reading, data_files, guess_kind, has_validation, read_documents,
};
use proptest::prelude::*;

/// Makes a folder of files whose text is their name.
fn folder(names: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    for name in names {
        let text = format!("{{\"text\": \"{name}\"}}");
        let is_json = name.contains(".json");
        scratch.file(&format!("d/{name}"), if is_json { &text } else { *name });
    }
    scratch
}

/// The texts of a part, and the note about the files.
fn read(scratch: &Scratch, part: Part) -> (Vec<String>, String) {
    let reading = Reading::new(part, false);
    let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
    let documents = read_documents(scratch.path("d"), &options).unwrap();
    let texts = documents.into_iter().map(|document| document.text).collect();
    (texts, reading.take_notes().join("\n"))
}

#[test]
fn a_downloaded_data_set_is_read_by_its_splits() {
    for (train, validation, test) in [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        (
            "data/train-00000-of-00001.jsonl",
            "data/dev-00000-of-00001.jsonl",
            "data/test-00000-of-00001.jsonl",
        ),
        ("train/a.jsonl", "valid/a.jsonl", "test/a.jsonl"),
        ("en_news.train.jsonl", "en_news.dev.jsonl", "en_news.test.jsonl"),
        ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
        ("train.jsonl", "eval.jsonl", "test.jsonl"),
    ] {
        let about = ["README.md", "LICENSE", "dataset_infos.json", "x.parquet"];
        let scratch = folder(&[&about[..], &[train, validation, test]].concat());
        let (texts, note) = read(&scratch, Part::Train);
        assert_eq!(texts, [train]);
        for name in
            [train, validation, test, "README.md", "LICENSE", "dataset_infos.json", "x.parquet"]
        {
            assert!(note.contains(name), "{name}: {note}");
        }
        assert!(has_validation(scratch.path("d")).unwrap());
        let used = data_files(scratch.path("d")).unwrap();
        let used: Vec<&str> = used.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(used, [train, validation], "what a run depends on");
        assert_eq!(read(&scratch, Part::Validation).0, [validation]);
        assert_eq!(read(&scratch, Part::Evaluation).0, [test]);
        assert_eq!(read(&scratch, Part::All).0.len(), 3);
        assert_eq!(guess_kind(scratch.path("d")).unwrap(), DatasetKind::Text);
    }
}

#[test]
fn words_in_names_of_texts_are_no_splits() {
    let books = ["dev_notes.txt", "test_of_fire.txt", "the_train.txt"];
    let scratch = folder(&books);
    assert_eq!(read(&scratch, Part::Train).0, books);
    assert!(!has_validation(scratch.path("d")).unwrap());
    // A folder of guides has a README among them; a licence is about them.
    let scratch = folder(&["README.md", "guide.md", "LICENSE.md"]);
    assert_eq!(read(&scratch, Part::Train).0, ["README.md", "guide.md"]);
    let scratch = folder(&["license_plates.txt", "readme.txt", "a.txt"]);
    assert_eq!(read(&scratch, Part::Train).0, ["a.txt", "license_plates.txt"]);
}

#[test]
fn a_test_split_is_not_trained_on_even_alone() {
    let scratch = folder(&["test.jsonl", "validation.jsonl"]);
    let error = read_documents(scratch.path("d"), &ReadOptions::default()).unwrap_err();
    says(&error, &["only a validation or test split", "test.jsonl"]);
    // A file that is named is what is wanted.
    assert_eq!(
        read_documents(scratch.path("d/test.jsonl"), &ReadOptions::default()).unwrap().len(),
        1
    );
    let scratch = folder(&["README.md", "guide.md", "picture.png"]);
    assert_eq!(read(&scratch, Part::Train).0, ["README.md", "guide.md"]);
    let scratch = folder(&["README.md", "train.parquet"]);
    let error = read_documents(scratch.path("d"), &ReadOptions::default()).unwrap_err();
    says(&error, &["train.parquet", "expected files that end in"]);
    let scratch = folder(&["data.jsonl", "test.jsonl"]);
    assert_eq!(read(&scratch, Part::Train).0, ["data.jsonl"]);
}

#[test]
fn the_kind_is_that_of_the_data_files() {
    let scratch = Scratch::new();
    scratch.file("d/README.md", "# A card");
    scratch.file("d/train.jsonl", "{\"text\": \"a\", \"label\": 1}\n");
    assert_eq!(guess_kind(scratch.path("d")).unwrap(), DatasetKind::Labelled);
    scratch.file("d/talks.jsonl", "{\"messages\": []}\n");
    says(
        &guess_kind(scratch.path("d")).unwrap_err(),
        &["talks.jsonl", "conversations", "train.jsonl", "labelled texts"],
    );
}

proptest! {
    #[test]
    fn every_file_of_a_folder_is_read_or_named(
        names in prop::collection::btree_set(
            ("(train|test|dev|eval|readme|license|a|b)[_.]?[a-c]{0,2}", prop::sample::select(
                vec![".txt", ".jsonl", ".md", ".csv.bz2", ".parquet", ".bin", ""])),
            1..7,
        ),
    ) {
        let names: Vec<String> = names.into_iter().map(|(stem, ending)| format!("{stem}{ending}"))
            .chain(["data.jsonl".to_owned()]).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let scratch = folder(&names);
        let (texts, note) = read(&scratch, Part::Train);
        for name in names {
            let is_read = texts.iter().any(|text| text == name);
            prop_assert!(is_read || note.contains(name), "{}: {}", name, note);
        }
    }
}
