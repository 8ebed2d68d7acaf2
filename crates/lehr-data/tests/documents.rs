//! Documents from files of every kind, and what is said of files that are not right.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use std::io::Write;

use common::{Scratch, says};
use flate2::{Compression, write::GzEncoder};
use lehr_data::source::documents;
use lehr_data::{Document, ReadOptions, read_documents};
use proptest::prelude::*;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
}

fn read(path: impl AsRef<std::path::Path>) -> Vec<Document> {
    read_documents(path, &ReadOptions::default()).unwrap()
}

fn texts(path: impl AsRef<std::path::Path>) -> Vec<String> {
    read(path).into_iter().map(|document| document.text).collect()
}

fn split_at(document_bytes: usize) -> ReadOptions {
    ReadOptions { document_bytes, ..ReadOptions::default() }
}

proptest! {
    #[test]
    fn documents_of_a_text_file_join_to_its_text(
        lines in prop::collection::vec("[ab猫 ]{0,12}(\r?\n)?", 1..60),
        document_bytes in 0usize..40,
    ) {
        let scratch = Scratch::new();
        let text = format!("x{}", lines.concat());
        let path = scratch.file("a.txt", &text);
        let documents: Vec<String> = documents(path, &split_at(document_bytes)).unwrap()
            .map(|document| document.unwrap().text).collect();
        // Documents of white space only are left out; nothing else is.
        let visible = |text: &str| text.split_whitespace().collect::<String>();
        prop_assert_eq!(visible(&documents.concat()), visible(&text));
        if document_bytes == 0 {
            prop_assert_eq!(documents.len(), 1);
        }
        if documents.len() > 1 {
            prop_assert!(documents.iter().all(|text| text.len() >= document_bytes));
        }
    }
}

#[test]
fn text_files_are_cut_before_paragraphs() {
    let scratch = Scratch::new();
    let text = "One one\none.\n\n\nTwo two.\n\nThree.\n\nFour four four.\n";
    let path = scratch.file("book.txt", text);
    let documents = read_documents(&path, &split_at(12)).unwrap();
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, ["One one\none.\n\n\n", "Two two.\n\nThree.\n\n", "Four four four.\n"]);
    assert_eq!(documents[1].id, "book.txt#2");
    assert_eq!(texts.concat(), text);
}

#[test]
fn a_file_without_paragraphs_is_cut_at_line_ends_and_a_long_line_at_spaces() {
    let scratch = Scratch::new();
    let lines = scratch.file("lines.txt", "0123456789\n".repeat(20));
    let documents = read_documents(lines, &split_at(10)).unwrap();
    assert!(documents.len() >= 4);
    assert!(documents.iter().all(|document| document.text.ends_with('\n')));
    let line = scratch.file("line.txt", "word ".repeat(100));
    let documents = read_documents(line, &split_at(10)).unwrap();
    assert!(documents.len() >= 5);
    assert!(documents.iter().all(|document| document.text.ends_with("word ")));
    let chinese = scratch.file("chinese.txt", "猫".repeat(100));
    assert_eq!(read_documents(chinese, &split_at(10)).unwrap().len(), 8);
}

#[test]
fn every_format_gives_the_same_documents() {
    let scratch = Scratch::new();
    for (name, content) in [
        ("a.txt", "a \"cat\"\n"),
        ("a.md", "a \"cat\"\n"),
        ("a.jsonl", "{\"text\": \"a \\\"cat\\\"\\n\"}\n\n"),
        ("a.json", "[{\"text\": \"a \\\"cat\\\"\\n\"}]"),
        ("a.csv", "n,text\n1,\"a \"\"cat\"\"\n\"\n"),
        ("a.tsv", "n\ttext\n1\t\"a \"\"cat\"\"\n\"\n"),
    ] {
        let content = content.as_bytes();
        assert_eq!(texts(scratch.file(name, content)), ["a \"cat\"\n"], "{name}");
        let with_mark = [b"\xEF\xBB\xBF", content].concat();
        assert_eq!(texts(scratch.file(name, with_mark)), ["a \"cat\"\n"], "{name} with a mark");
        let gz = scratch.file(&format!("{name}.gz"), gzip(content));
        assert_eq!(texts(gz), ["a \"cat\"\n"], "{name}.gz");
        let zst = scratch.file(&format!("{name}.zst"), zstd(content));
        assert_eq!(texts(zst), ["a \"cat\"\n"], "{name}.zst");
    }
}

#[test]
fn compressed_files_of_several_parts_are_read_to_the_end() {
    let scratch = Scratch::new();
    let gz = scratch.file("a.txt.gz", [gzip(b"one "), gzip(b"two")].concat());
    assert_eq!(texts(gz), ["one two"]);
    let skippable = b"\x50\x2A\x4D\x18\x03\x00\x00\x00abc".to_vec();
    let zst = [zstd(b"one "), skippable, zstd(b"two")].concat();
    assert_eq!(texts(scratch.file("a.txt.zst", zst)), ["one two"]);
}

#[test]
fn records_keep_their_id_and_other_fields() {
    let scratch = Scratch::new();
    let lines =
        "{\"text\": \"a\", \"id\": 7, \"url\": \"u\"}\n{\"text\": \"b\"}\n{\"text\": \" \"}\n";
    let documents = read(scratch.file("a.jsonl", lines));
    assert_eq!(documents.len(), 2, "a document of white space is left out");
    assert_eq!(documents[0].id, "7");
    assert_eq!(documents[0].metadata["url"], "u");
    assert!(!documents[0].metadata.contains_key("text"));
    assert_eq!(documents[1].id, "a.jsonl:2");
}

#[test]
fn folders_are_read_recursively_in_sorted_order() {
    let scratch = Scratch::new();
    for name in ["b.txt", "a/z.md", "a/b/c.jsonl", ".hidden/x.txt", "notes.pdf"] {
        let content = if name.ends_with("jsonl") { "{\"text\": \"a/b/c.jsonl\"}" } else { name };
        scratch.file(&format!("corpus/{name}"), content);
    }
    assert_eq!(texts(scratch.path("corpus")), ["a/b/c.jsonl", "a/z.md", "b.txt"]);
    assert_eq!(read(scratch.path("corpus"))[1].id, "a/z.md#1");
}

#[test]
fn another_text_field_can_be_named() {
    let scratch = Scratch::new();
    let path = scratch.file("a.jsonl", "{\"body\": \"hello\"}");
    let options = ReadOptions { text_field: "body".into(), ..ReadOptions::default() };
    assert_eq!(read_documents(&path, &options).unwrap()[0].text, "hello");
    let error = read_documents(&path, &ReadOptions::default()).unwrap_err();
    says(&error, &["line 1", "no field \"text\"", "found \"body\""]);
}

#[test]
fn bad_files_are_named_with_the_place() {
    let scratch = Scratch::new();
    let cut_gz = gzip(&b"some text ".repeat(1000));
    let cut_zst = zstd(&b"some text ".repeat(1000));
    for (name, content, parts) in [
        ("a.pdf", &b"x"[..], &["\".pdf\"", "expected .txt"][..]),
        ("noending", b"x", &["ending is missing"]),
        ("bad.txt", b"ok\nnot \xFF ok", &["line 2", "offset 7"]),
        ("utf16.txt", b"\xFF\xFEa\0", &["UTF-16", "expected UTF-8"]),
        ("gb.csv", b"text\n\xC4\xE3\xBA\xC3\n", &["line 2 is not UTF-8", "GB18030"]),
        ("bad.csv", b"text\na\n\xFF\n", &["line 3 is not UTF-8"]),
        ("cut.txt.gz", &cut_gz[..cut_gz.len() / 2], &["decompressing", "cut.txt.gz"]),
        ("not.txt.gz", b"plain text", &["decompressing", "not.txt.gz"]),
        ("cut.txt.zst", &cut_zst[..cut_zst.len() / 2], &["decompressing", "cut.txt.zst"]),
        ("not.txt.zst", b"plain text", &["decompressing", "not.txt.zst"]),
        ("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n", &["line 2", "not JSON", "column"]),
        ("list.jsonl", b"[1]\n", &["line 1", "found a number, expected an object"]),
        ("texts.jsonl", b"\"a\"\n", &["line 1", "found a string, expected an object"]),
        ("bad.json", b"[{\"text\": \"a\"},\n{\"text\"}]", &["line 2", "not JSON"]),
        ("object.json", b"{\"data\": 3}", &["line 1", "no field \"text\", found \"data\""]),
        ("type.json", b"[{\"text\": \"a\"}, {\"text\": 3}]", &["item 2", "a number", "a string"]),
        ("ragged.csv", b"text,n\na,1\nb\n", &["line 3", "1 fields, expected 2"]),
        ("field.csv", b"a,b\n1,2\n", &["line 2", "\"text\"", "found \"a\", \"b\""]),
        ("empty.txt", b"", &["found no document"]),
        ("blank.txt", b"\n \n", &["found no document"]),
    ] {
        let error = read_documents(scratch.file(name, content), &ReadOptions::default());
        says(&error.unwrap_err(), parts);
    }
    let missing = read_documents(scratch.path("none.txt"), &ReadOptions::default()).unwrap_err();
    says(&missing, &["reading", "none.txt"]);
    std::fs::create_dir(scratch.path("folder")).unwrap();
    let empty = read_documents(scratch.path("folder"), &ReadOptions::default()).unwrap_err();
    says(&empty, &["found no document"]);
}

#[test]
fn a_flipped_bit_in_a_gz_file_is_found() {
    let scratch = Scratch::new();
    let mut bytes = gzip(b"some text that is not very long");
    let checksum = bytes.len() - 8;
    bytes[checksum] ^= 1;
    let error = read_documents(scratch.file("a.txt.gz", bytes), &ReadOptions::default());
    says(&error.unwrap_err(), &["decompressing"]);
}

#[test]
fn the_iterator_ends_after_an_error() {
    let scratch = Scratch::new();
    scratch.file("d/a.jsonl", "{\"text\": \"a\"}\n?\n{\"text\": \"b\"}\n");
    scratch.file("d/b.txt", "c");
    let all: Vec<_> = documents(scratch.path("d"), &ReadOptions::default()).unwrap().collect();
    assert_eq!(all.len(), 2);
    assert!(all[0].is_ok() && all[1].is_err());
}
