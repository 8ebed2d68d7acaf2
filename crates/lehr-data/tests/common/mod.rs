//! What the tests share: a tiny tokenizer, a scratch folder, readable batches.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;
use std::sync::LazyLock;

use lehr_data::{Batch, Document, Error};
use lehr_tokenizer::{Tokenizer, Trainer};

/// 256 bytes, 5 special tokens and a few merges.
pub(crate) static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Trainer::new(280).train(["the cat and the dog 猫和狗 the end"]).unwrap());

pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

pub(crate) fn document(text: impl Into<String>) -> Document {
    Document { text: text.into(), id: String::new(), metadata: serde_json::Map::new() }
}

/// The error says `parts` and has a hint.
#[track_caller]
pub(crate) fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{text:?} has no hint");
}

/// One token of a batch, with all that is said of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) token: i32,
    pub(crate) target: i32,
    pub(crate) position: i32,
    pub(crate) segment_start: i32,
}

/// The rows of a batch, after checking that it is well-formed.
#[track_caller]
pub(crate) fn rows(batch: &Batch) -> Vec<Vec<Cell>> {
    batch.validate().unwrap();
    let cell = |at: usize| Cell {
        token: batch.tokens[at],
        target: batch.targets[at],
        position: batch.positions[at],
        segment_start: batch.segment_starts[at],
    };
    let rows: Vec<Vec<Cell>> = (0..batch.batch_size)
        .map(|row| (0..batch.seq_len).map(|t| cell(row * batch.seq_len + t)).collect())
        .collect();
    for row in &rows {
        for (t, cell) in row.iter().enumerate() {
            assert_eq!(cell.position, t as i32 - cell.segment_start, "position of {t}: {row:?}");
            let head = &row[cell.segment_start as usize];
            assert_eq!(head.segment_start, cell.segment_start, "segment of {t}: {row:?}");
        }
    }
    rows
}

/// The targets and their bytes, counted again.
#[track_caller]
pub(crate) fn check_counts(batch: &Batch, tokenizer: &Tokenizer) {
    let lengths = tokenizer.byte_lengths();
    let aimed: Vec<i32> = batch.targets.iter().copied().filter(|&t| t != Batch::IGNORE).collect();
    let bytes: u64 = aimed.iter().map(|&t| u64::from(lengths[t as usize])).sum();
    assert_eq!((batch.n_targets, batch.target_bytes), (aimed.len(), bytes));
}
