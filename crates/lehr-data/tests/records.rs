//! Records as people store them: layouts of JSON, quotes in tables, line ends, marks, bad records.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Scratch, says};
use lehr_data::{
    Error, LabelledFields, Part, ReadOptions, Reading, read_conversations, read_documents,
    read_labelled,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn texts(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, Error> {
    let scratch = Scratch::new();
    let documents = read_documents(scratch.file(name, content), &ReadOptions::default())?;
    Ok(documents.into_iter().map(|document| document.text).collect())
}

/// The pairs of a table with the columns text and label.
fn table(name: &str, content: &str) -> Result<Vec<(String, String)>, Error> {
    let scratch = Scratch::new();
    let path = scratch.file(name, content);
    let read = read_labelled(path, &LabelledFields::default(), &Reading::default())?;
    Ok(read.into_iter().map(|example| (example.text, example.label)).collect())
}

fn pair(text: &str, label: &str) -> (String, String) {
    (text.to_owned(), label.to_owned())
}

#[test]
fn every_layout_of_json_is_read_under_both_endings() {
    let (a, b) = (json!({"text": "a {[,"}), json!({"text": "b \\\" ]}"}));
    let both = json!([a, b]);
    let around = json!({"version": 1, "data": [a, b], "note": {"x": [1]}});
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    for (layout, content) in [
        ("lines", format!("{a}\n{b}\n")),
        ("lines with blank ones", format!("\n{a}\r\n\r\n{b}")),
        ("old Macintosh lines", format!("{a}\r{b}\r")),
        ("joined files with marks", format!("\u{feff}{a}\n\u{feff}{b}\n")),
        ("a list", both.to_string()),
        ("a list over lines", pretty(&both)),
        ("lists one after another", format!("[{a}]\n[{b}]")),
        ("a list in an object", around.to_string()),
        ("a list in an object over lines", pretty(&around)),
        ("objects over lines", format!("{}\n{}", pretty(&a), pretty(&b))),
    ] {
        for name in ["a.json", "a.jsonl"] {
            assert_eq!(texts(name, &content).unwrap(), ["a {[,", "b \\\" ]}"], "{layout}, {name}");
        }
    }
}

#[test]
fn fields_beside_a_list_are_named() {
    let scratch = Scratch::new();
    let path = scratch.file("a.json", r#"{"version": 1, "data": [{"text": "a"}], "test": [{}]}"#);
    let reading = Reading::default();
    let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
    read_documents(path, &options).unwrap();
    let notes = reading.take_notes().join("\n");
    assert!(notes.contains("\"version\" beside the list"), "{notes}");
    assert!(notes.contains("\"test\" beside the list"), "{notes}");
}

#[test]
fn broken_json_is_refused_with_its_place() {
    for (content, parts) in [
        ("[{\"text\": \"a\"}", &["within a list"][..]),
        ("[{\"text\": \"a\"} {}]", &["a comma"]),
        ("[{\"text\": \"a\"}] x", &["the end of the file"]),
        ("[{\"text\": \"a", &["line 1", "ends within this record"]),
        ("{\"data\": [{\"text\": \"a\"}]", &["the end of the object"]),
        ("{\"text\": \"a\", \"text\": \"b\"}", &["line 1", "\"text\" is given twice"]),
        ("[{\"text\": \"a\"}, {\"text\": 1}]", &["item 2, line 1", "a number"]),
    ] {
        says(&texts("a.json", content).unwrap_err(), parts);
    }
}

#[test]
fn quotes_in_tab_separated_text_are_text() {
    let content = "text\tlabel\n\"one\tpos\nbad\"\tneg\nsays \"hi\"\tpos\n\"whole\"\tneg\n";
    let expected = [
        pair("\"one", "pos"),
        pair("bad\"", "neg"),
        pair("says \"hi\"", "pos"),
        pair("\"whole\"", "neg"),
    ];
    assert_eq!(table("a.tsv", content).unwrap(), expected);
}

#[test]
fn tab_separated_files_of_programs_that_quote_are_read() {
    // A tab, a line break and a quote, quoted where needed.
    let needed = "text\tlabel\n\"a\tb\"\tx\n\"c\nd\"\ty\n\"e \"\"f\"\"\"\tz\n";
    let all = "\"text\"\t\"label\"\n\"a\tb\"\t\"x\"\n\"c\nd\"\t\"y\"\n\"e \"\"f\"\"\"\t\"z\"\n";
    for content in [needed, all] {
        let expected = [pair("a\tb", "x"), pair("c\nd", "y"), pair("e \"f\"", "z")];
        assert_eq!(table("a.tsv", content).unwrap(), expected, "{content}");
    }
}

#[test]
fn tables_that_cannot_be_read_as_meant_are_refused() {
    for (name, content, parts) in [
        ("a.csv", "text,label\n\"a,x\nb,y\n", &["line 2", "quote", "not closed"][..]),
        ("a.csv", "text,label\n\"a\" b,x\n", &["line 2", "text follows the closing quote"]),
        ("a.csv", "text,label,text\na,x,b\n", &["line 1", "two columns", "\"text\""]),
        ("a.csv", "text,label\na,x\ntext,label\nb,y\n", &["line 3", "repeats the names"]),
        ("a.tsv", "text\tlabel\na\tx\tz\n", &["line 2", "3 fields, expected 2"]),
        ("a.tsv", "text\tlabel\n\"a\n", &["line 2", "1 fields, expected 2"]),
    ] {
        says(&table(name, content).unwrap_err(), parts);
    }
    assert_eq!(table("a.csv", "text,label\ra,x\rb,y").unwrap(), [pair("a", "x"), pair("b", "y")]);
}

proptest! {
    #[test]
    fn what_is_written_as_csv_is_read(
        rows in prop::collection::vec(("[a\"\n\r, \t猫]{0,8}[a-z]", "[a\",]{0,3}[a-z]"), 1..20),
    ) {
        let quoted = |field: &str| format!("\"{}\"", field.replace('"', "\"\""));
        let mut content = "text,label\n".to_owned();
        for (text, label) in &rows {
            content += &format!("{},{}\n", quoted(text), quoted(label));
        }
        let expected: Vec<_> = rows.iter().map(|(text, label)| pair(text, label)).collect();
        prop_assert_eq!(table("a.csv", &content).unwrap(), expected);
    }

    #[test]
    fn every_row_of_tab_separated_text_is_kept(
        rows in prop::collection::vec(("[a\" ]{0,6}[a-z]", "[a-z]{1,3}"), 1..40),
    ) {
        let mut content = "text\tlabel\n".to_owned();
        for (text, label) in &rows {
            content += &format!("{text}\t{label}\n");
        }
        let expected: Vec<_> = rows.iter().map(|(text, label)| pair(text, label)).collect();
        prop_assert_eq!(table("a.tsv", &content).unwrap(), expected);
    }

    #[test]
    fn records_in_a_list_are_those_on_lines(
        texts_in in prop::collection::vec("[ab\"\\\\{}\\[\\],:猫\n]{0,9}x", 1..20),
        spaces in "[ \n\t]{0,4}",
    ) {
        let record = |text: &String| json!({"text": text}).to_string();
        let records: Vec<String> = texts_in.iter().map(record).collect();
        let items = records.join(&format!("{spaces},"));
        let list = format!("{spaces}[{spaces}{items}{spaces}]{spaces}");
        prop_assert_eq!(&texts("a.json", list).unwrap(), &texts_in);
        prop_assert_eq!(&texts("a.json", records.join("\n")).unwrap(), &texts_in);
    }
}

#[test]
fn all_bad_records_are_listed_or_skipped_and_counted() {
    let scratch = Scratch::new();
    let talk = json!({"prompt": "q", "completion": "a"});
    scratch.file("d/a.jsonl", format!("{talk}\n?\n{}\n", json!({"prompt": "q"})));
    let empty = json!({"prompt": "q", "completion": ""});
    scratch.file("d/b.jsonl", format!("{empty}\n{talk}\n"));
    let path = scratch.path("d");
    let error = read_conversations(&path, &Reading::default()).unwrap_err();
    let places =
        ["3 records", "a.jsonl\", line 2: not JSON", "a.jsonl\", line 3", "b.jsonl\", line 1"];
    says(&error, &places);
    assert!(error.hint().unwrap().contains("--skip-bad"));
    let reading = Reading::new(Part::Train, true);
    assert_eq!(read_conversations(&path, &reading).unwrap().len(), 2);
    let notes = reading.take_notes().join("\n");
    for part in ["3 bad records are left out", "a.jsonl\", line 2", "b.jsonl\", line 1"] {
        assert!(notes.contains(part), "{notes}");
    }
    let bad = scratch.file("bad.jsonl", "?\n".repeat(50));
    let error = read_conversations(&bad, &reading).unwrap_err();
    says(&error, &["50 records are bad", "line 20", "and 30 more"]);
}

#[test]
fn lines_that_are_not_utf8_can_be_skipped_among_records() {
    let scratch = Scratch::new();
    let path =
        scratch.file("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xE9\"}\n{\"text\": \"b\"}\n");
    let reading = Reading::new(Part::Train, true);
    let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
    assert_eq!(read_documents(&path, &options).unwrap().len(), 2);
    assert!(reading.take_notes().join("\n").contains("1 bad record"));
    let error = read_documents(&path, &ReadOptions::default()).unwrap_err();
    says(&error, &["line 2", "Latin-1"]);
}
