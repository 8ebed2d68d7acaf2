//! Labelled texts, conversations, the guess between them, and the split of all of them.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::path::Path;

use common::{Scratch, says};
use lehr_data::{
    Conversation, DatasetKind, Labelled, LabelledFields, Reading, guess_kind, read_conversations,
    read_labelled, split_by_text,
};
use lehr_tokenizer::chat::{Message, Role};
use proptest::prelude::*;

fn labelled(text: &str, label: &str) -> Labelled {
    Labelled { text: text.into(), label: label.into() }
}

fn labels(path: impl AsRef<Path>, fields: &LabelledFields) -> lehr_data::Result<Vec<Labelled>> {
    read_labelled(path, fields, &Reading::default())
}

fn chats(path: impl AsRef<Path>) -> lehr_data::Result<Vec<Conversation>> {
    read_conversations(path, &Reading::default())
}

#[test]
fn labelled_texts_are_read_from_every_record_format() {
    let scratch = Scratch::new();
    for (name, content) in [
        ("a.jsonl", "{\"text\": \"good\", \"label\": \"1\"}\n{\"text\": \"bad\", \"label\": 0}"),
        ("a.json", "[{\"text\": \"good\", \"label\": 1}, {\"label\": 0, \"text\": \"bad\"}]"),
        ("a.csv", "label,text\n1,good\n0,bad\n"),
        ("a.tsv", "text\tlabel\ngood\t1\nbad\t0\n"),
    ] {
        let read = labels(scratch.file(name, content), &LabelledFields::default()).unwrap();
        assert_eq!(read, [labelled("good", "1"), labelled("bad", "0")], "{name}");
    }
    let fields = LabelledFields { text: "review".into(), label: "stars".into() };
    let path = scratch.file("b.csv", "review,stars\nfine,true\n");
    assert_eq!(labels(&path, &fields).unwrap(), [labelled("fine", "true")]);
    let error = labels(&path, &LabelledFields::default()).unwrap_err();
    says(&error, &["line 2", "\"label\"", "found \"review\", \"stars\""]);
}

#[test]
fn bad_labelled_files_are_named() {
    let scratch = Scratch::new();
    let read = |name: &str, content: &str| {
        labels(scratch.file(name, content), &LabelledFields::default()).unwrap_err()
    };
    says(&read("a.jsonl", "{\"text\": \"a\", \"label\": [1]}"), &["\"label\" is a list"]);
    says(&read("a.jsonl", "{\"text\": 5, \"label\": 1}"), &["\"text\" is a number"]);
    says(&read("a.jsonl", ""), &["found no labelled text"]);
    says(&read("a.csv", "text,label\na,\n"), &["line 2", "\"label\" is empty"]);
    says(&read("a.csv", "text,label\n ,a\n"), &["line 2", "\"text\" is empty"]);
    says(&read("a.txt", "text"), &["expected .jsonl"]);
}

fn talk(question: &str, answer: &str) -> Vec<Message> {
    vec![Message::new(Role::User, question), Message::new(Role::Assistant, answer)]
}

#[test]
fn conversations_are_read_from_every_form() {
    let scratch = Scratch::new();
    for record in [
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        r#"{"prompt": "q", "completion": "a"}"#,
        r#"{"prompt": "q", "response": "a"}"#,
        r#"{"instruction": "q", "input": "", "output": "a"}"#,
        r#"{"instruction": "q", "output": "a"}"#,
    ] {
        let path = scratch.file("a.jsonl", record);
        assert_eq!(guess_kind(&path).unwrap(), DatasetKind::Chat, "{record}");
        let read = chats(&path).unwrap();
        assert_eq!(read[0].messages, talk("q", "a"), "{record}");
        assert_eq!(read[0].id, "a.jsonl:1");
    }
    let record = r#"{"system": "s", "instruction": "q", "input": "i", "output": "a", "id": "x"}"#;
    let read = chats(scratch.file("a.jsonl", record)).unwrap();
    assert_eq!(read[0].messages[0], Message::new(Role::System, "s"));
    assert_eq!(read[0].messages[1].content, "q\n\ni");
    assert_eq!(read[0].id, "x");
}

#[test]
fn bad_conversations_are_named() {
    let scratch = Scratch::new();
    for (record, parts) in [
        (r#"{"text": "a"}"#, &["line 1", "no field \"messages\"", "found \"text\""][..]),
        (r#"{"prompt": "a"}"#, &["no field \"completion\""]),
        (r#"{"messages": "a"}"#, &["\"messages\" is a string, expected a list"]),
        (r#"{"messages": []}"#, &["line 1", "message 0", "expected a user message"]),
        (
            r#"{"messages": [{"role": "tool", "content": ""}]}"#,
            &["message 0: found role tool, expected user"],
        ),
        (r#"{"messages": [{"role": "user"}]}"#, &["messages[0].content", "null", "a string"]),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}]}"#,
            &["message 0: found role assistant, expected user"],
        ),
        ("", &["found no conversation"]),
    ] {
        says(&chats(scratch.file("a.jsonl", record)).unwrap_err(), parts);
    }
}

#[test]
fn the_kind_of_a_dataset_is_guessed_from_its_fields() {
    let scratch = Scratch::new();
    let kind = |name: &str, content: &str| guess_kind(scratch.file(name, content));
    assert_eq!(kind("a.txt", "text label").unwrap(), DatasetKind::Text);
    assert_eq!(kind("a.jsonl", r#"{"text": "", "url": ""}"#).unwrap(), DatasetKind::Text);
    assert_eq!(kind("a.csv", "label,text\n1,a\n").unwrap(), DatasetKind::Labelled);
    says(&kind("b.csv", "x,y\n1,a\n").unwrap_err(), &["guessing", "\"x\", \"y\""]);
    says(&kind("c.csv", "x,y\n").unwrap_err(), &["found no record"]);
}

proptest! {
    #[test]
    fn a_split_keeps_every_text_once_and_no_side_empty_and_copies_together(
        texts in prop::collection::vec("[a-c]{1,2}", 1..40),
        fraction in 0.001f64..0.999,
        seed in any::<u64>(),
    ) {
        let split = split_by_text(texts.clone(), Clone::clone, fraction, seed).unwrap();
        let (train, validation) = split;
        let n_different = texts.iter().collect::<std::collections::HashSet<_>>().len();
        prop_assert_eq!(validation.is_empty(), n_different == 1);
        prop_assert!(!train.is_empty());
        prop_assert!(validation.iter().all(|text| !train.contains(text)));
        let mut after: Vec<_> = train.into_iter().chain(validation).collect();
        let mut before = texts;
        before.sort();
        after.sort();
        prop_assert_eq!(after, before);
    }
}

#[test]
fn a_split_is_stable_when_documents_are_added_and_near_its_fraction() {
    let texts = |count: usize| (0..count).map(|i| format!("text {i}")).collect::<Vec<_>>();
    let split = |count, seed| split_by_text(texts(count), Clone::clone, 0.1, seed).unwrap().1;
    let (small, large) = (split(500, 1), split(1000, 1));
    assert!(large.starts_with(&small));
    assert!((70..130).contains(&large.len()), "{}", large.len());
    assert_ne!(large, split(1000, 2), "another seed splits otherwise");
    let one = split_by_text(texts(1), Clone::clone, 0.001, 1).unwrap();
    assert_eq!((one.0.len(), one.1.len()), (1, 0), "one text cannot be on both sides");
}

#[test]
fn equal_texts_stay_on_one_side() {
    let texts: Vec<String> = (0..300).map(|i| format!("text {}", i % 30)).collect();
    let (train, validation) = split_by_text(texts, Clone::clone, 0.3, 7).unwrap();
    assert!(!validation.is_empty());
    assert!(validation.iter().all(|text| !train.contains(text)));
}

#[test]
fn fractions_that_are_no_part_are_refused() {
    for fraction in [0.0, 1.0, -0.5, 1.5, f64::NAN] {
        let error = split_by_text(vec![1, 2], ToString::to_string, fraction, 0).unwrap_err();
        says(&error, &["fraction"]);
    }
}
