//! Windows of the token stream: nothing lost, nothing repeated, nothing seen across documents.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::{Cell, Scratch, TOKENIZER, check_counts, document, rows, says};
use lehr_data::{
    Batch, Loader, LoaderOptions, PretrainLoader, RowSpan, ShardSet, TokenizeOptions, tokenize_to,
};
use proptest::prelude::*;

fn shards(texts: &[String], shard_tokens: u64) -> ShardSet {
    let scratch = Scratch::new();
    let documents = texts.iter().map(|text| Ok(document(text)));
    let options = TokenizeOptions { shard_tokens };
    let folder = scratch.path("tokens");
    // The open files outlive the scratch folder.
    tokenize_to(documents, &TOKENIZER, folder, &options, &mut |_| {}).unwrap()
}

fn loader(set: &ShardSet, options: LoaderOptions) -> PretrainLoader {
    PretrainLoader::new(set.clone(), options).unwrap()
}

/// Every row of one epoch, straight from the definition.
fn rows_by_definition(texts: &[String], len: usize) -> Vec<Vec<Cell>> {
    let end = TOKENIZER.end_of_document().unwrap();
    let mut stream = Vec::new();
    for (document, text) in texts.iter().enumerate() {
        let ids = TOKENIZER.encode(text).unwrap();
        stream.extend(ids.into_iter().chain([end]).map(|id| (document, id as i32)));
    }
    let mut rows = Vec::new();
    for first in (0..stream.len() - 1).step_by(len) {
        let mut row = Vec::new();
        for t in 0..len {
            let at = first + t;
            if at >= stream.len() - 1 {
                let (token, target) = (end as i32, Batch::IGNORE);
                row.push(Cell { token, target, position: 0, segment_start: t as i32 });
                continue;
            }
            let same = |other: usize| stream[other].0 == stream[at].0;
            let start = (first..=at).find(|&other| same(other)).unwrap();
            row.push(Cell {
                token: stream[at].1,
                target: if same(at + 1) { stream[at + 1].1 } else { Batch::IGNORE },
                position: (at - start) as i32,
                segment_start: (start - first) as i32,
            });
        }
        rows.push(row);
    }
    rows
}

fn epoch_rows(loader: &PretrainLoader, epoch: u64) -> Vec<Vec<Cell>> {
    let count = loader.batches_per_epoch();
    (epoch * count..(epoch + 1) * count)
        .flat_map(|index| rows(&loader.batch(index).unwrap()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_are_those_of_the_definition(
        texts in prop::collection::vec("[a-d猫]{1,9}", 1..12),
        shard_tokens in 1u64..30,
        len in 1usize..12,
        batch_rows in 1usize..5,
    ) {
        let set = shards(&texts, shard_tokens);
        let expected = rows_by_definition(&texts, len);
        let sequential = loader(&set, LoaderOptions::sequential(batch_rows, len));
        let mut found = epoch_rows(&sequential, 0);
        let padding = found.split_off(expected.len());
        prop_assert_eq!(&found, &expected);
        prop_assert!(padding.iter().flatten().all(|cell| cell.target == Batch::IGNORE));
        prop_assert!(padding.len() < batch_rows);

        // Each shuffled epoch has exactly these rows.
        let shuffled = loader(&set, LoaderOptions::shuffled(1, len, 3));
        let mut expected = expected;
        expected.sort();
        for epoch in 0..3 {
            let mut found = epoch_rows(&shuffled, epoch);
            found.sort();
            prop_assert_eq!(&found, &expected);
        }
    }
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("document {i} ").repeat(1 + i % 7)).collect()
}

#[test]
fn every_token_but_the_first_of_a_document_is_a_target_once() {
    let texts = texts(50);
    let set = shards(&texts, 100);
    let loader = loader(&set, LoaderOptions::sequential(4, 16));
    let batches = (0..loader.batches_per_epoch()).map(|index| loader.batch(index).unwrap());
    let mut targets = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for batch in batches {
        check_counts(&batch, &TOKENIZER);
        count += batch.n_targets as u64;
        bytes += batch.target_bytes;
        targets.extend(batch.targets.into_iter().filter(|&target| target != Batch::IGNORE));
    }
    let end = TOKENIZER.end_of_document().unwrap();
    let expected = texts.iter().flat_map(|text| {
        let mut ids = TOKENIZER.encode(text).unwrap();
        ids.push(end);
        ids[1..].iter().map(|&id| id as i32).collect::<Vec<_>>()
    });
    assert_eq!(targets, expected.collect::<Vec<_>>());
    assert_eq!(count, loader.targets_per_epoch());
    let first_bytes: u64 = texts
        .iter()
        .map(|text| TOKENIZER.token_bytes(TOKENIZER.encode(text).unwrap()[0]).unwrap().len() as u64)
        .sum();
    assert_eq!(bytes + first_bytes, set.text_bytes());
}

#[test]
fn a_batch_does_not_depend_on_those_asked_for_before() {
    let set = shards(&texts(40), 1000);
    let options = LoaderOptions::shuffled(3, 8, 11);
    let running = loader(&set, options);
    let batches: Vec<Batch> = (0..60).map(|index| running.batch(index).unwrap()).collect();
    for index in [59, 0, 17, 41] {
        assert_eq!(loader(&set, options).batch(index).unwrap(), batches[index as usize]);
    }
    assert_ne!(loader(&set, LoaderOptions::shuffled(3, 8, 12)).batch(0).unwrap(), batches[0]);
}

#[test]
fn epochs_differ_and_far_batches_are_found_at_once() {
    let set = shards(&texts(40), 1000);
    let loader = loader(&set, LoaderOptions::shuffled(1, 8, 11));
    assert_ne!(epoch_rows(&loader, 0), epoch_rows(&loader, 1));
    for far in [1 << 40, u64::MAX] {
        assert_eq!(loader.batch(far).unwrap(), loader.batch(far).unwrap());
    }
}

#[test]
fn processes_share_the_rows_of_one_large_batch() {
    let set = shards(&texts(40), 1000);
    for whole in [LoaderOptions::shuffled(6, 8, 5), LoaderOptions::sequential(6, 8)] {
        let part = LoaderOptions { batch_size: 2, ..whole };
        let whole = loader(&set, whole);
        let parts: Vec<_> = (0..3).map(|rank| loader(&set, part.with_world(rank, 3))).collect();
        for index in 0..whole.batches_per_epoch() {
            let joined: Vec<_> =
                parts.iter().flat_map(|part| rows(&part.batch(index).unwrap())).collect();
            assert_eq!(joined, rows(&whole.batch(index).unwrap()));
        }
        assert!(parts.iter().all(|part| part.batches_per_epoch() == whole.batches_per_epoch()));
    }
}

#[test]
fn sequential_data_ends() {
    let set = shards(&texts(3), 1000);
    let loader = loader(&set, LoaderOptions::sequential(2, 8));
    let batches = loader.batches_per_epoch();
    assert!(loader.batch(batches - 1).is_ok());
    says(&loader.batch(batches).unwrap_err(), &[&format!("batch {batches}"), "there are"]);
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let set = shards(&texts(3), 1000);
    for (options, part) in [
        (LoaderOptions::sequential(0, 8), "0 rows"),
        (LoaderOptions::sequential(8, 0), "0 tokens"),
        (LoaderOptions::sequential(1 << 20, 1 << 20), "1048576 rows"),
        (LoaderOptions::sequential(1, 8).with_world(2, 2), "rank 2 of 2"),
        (LoaderOptions::sequential(1, 8).with_world(0, 0), "rank 0 of 0"),
    ] {
        says(&PretrainLoader::new(set.clone(), options).unwrap_err(), &[part]);
    }
}

fn shuffled(set: &ShardSet, options: LoaderOptions) -> PretrainLoader {
    loader(set, options).with_shuffled_documents().unwrap()
}

/// The tokens of a pass: all inputs and the last target, which is no input.
fn multiset(rows: &[Vec<Cell>]) -> Vec<i32> {
    let mut targets: Vec<i32> =
        rows.iter().flatten().map(|cell| cell.target).filter(|t| *t != Batch::IGNORE).collect();
    targets.sort_unstable();
    targets
}

/// Documents that follow one another within a row: three digits that end the first, the
/// end of the document, and three that begin the second.
fn neighbours(rows: &[Vec<Cell>]) -> std::collections::BTreeSet<[i32; 6]> {
    let end = TOKENIZER.end_of_document().unwrap() as i32;
    let borders = rows.iter().flat_map(|row| row.windows(7)).filter(|cells| cells[3].token == end);
    borders.map(|cells| [0, 1, 2, 4, 5, 6].map(|i: usize| cells[i].token)).collect()
}

#[test]
fn a_pass_over_shuffled_documents_sees_every_token_once_and_the_next_has_other_neighbours() {
    // Documents that begin and end with their number.
    let texts: Vec<String> =
        (0..300).map(|i| format!("{i:03} cat and dog {i:03}").repeat(1 + i % 11)).collect();
    for shard_tokens in [200, 1_000_000] {
        let set = shards(&texts, shard_tokens);
        let loader = shuffled(&set, LoaderOptions::shuffled(1, 32, 3));
        let sequential = epoch_rows(&loader_of(&set), 0);
        let want = multiset(&sequential);
        let epochs: Vec<_> = (0..3).map(|epoch| epoch_rows(&loader, epoch)).collect();
        for rows in &epochs {
            assert_eq!(multiset(rows), want);
            assert_eq!(rows.len(), sequential.len());
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (neighbours(&epochs[a]), neighbours(&epochs[b]));
            let same = a.intersection(&b).count();
            assert!(a.len() > 100 && same * 5 < a.len(), "{same} of {} pairs", a.len());
        }
        // Passes over rows have the same neighbours.
        let rows = epoch_rows(&self::loader(&set, LoaderOptions::shuffled(1, 32, 3)), 1);
        assert_eq!(neighbours(&rows), neighbours(&sequential));
    }
}

fn loader_of(set: &ShardSet) -> PretrainLoader {
    loader(set, LoaderOptions::sequential(1, 32))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// The rows of an epoch are those of a data set with its documents in another order.
    #[test]
    fn shuffled_documents_are_the_same_documents_in_another_order(
        texts in prop::collection::vec("[a-d猫]{1,9}", 1..40),
        shard_tokens in 1u64..60,
        len in 1usize..12,
    ) {
        let set = shards(&texts, shard_tokens);
        let loader = shuffled(&set, LoaderOptions::shuffled(3, len, 5));
        let batches = 2 * loader.batches_per_epoch();
        let found: Vec<Batch> = (0..batches).map(|i| loader.batch(i).unwrap()).collect();
        found.iter().for_each(|batch| check_counts(batch, &TOKENIZER));
        // In any order, and from a new loader.
        let again = shuffled(&set, LoaderOptions::shuffled(3, len, 5));
        for index in (0..batches).rev() {
            prop_assert_eq!(&again.batch(index).unwrap(), &found[index as usize]);
        }
        let epoch = epoch_rows(&shuffled(&set, LoaderOptions::shuffled(1, len, 5)), 0);
        let n_targets: u64 =
            epoch.iter().flatten().filter(|cell| cell.target != Batch::IGNORE).count() as u64;
        prop_assert_eq!(n_targets, loader.targets_per_epoch());
    }
}

#[test]
fn short_rows_are_the_parts_of_long_ones() {
    let set = shards(&texts(40), 500);
    for loader in [
        loader(&set, LoaderOptions::shuffled(3, 32, 5)),
        shuffled(&set, LoaderOptions::shuffled(3, 32, 5)),
    ] {
        let span = |seq_len, start, first, n_rows| {
            rows(&loader.rows(RowSpan { seq_len, start, first, n_rows }).unwrap())
        };
        let ids = |rows: &[Vec<Cell>]| -> Vec<(i32, i32)> {
            rows.iter().flatten().map(|cell| (cell.token, cell.target)).collect()
        };
        let whole = [rows(&loader.batch(0).unwrap()), rows(&loader.batch(1).unwrap())].concat();
        assert_eq!(span(32, 0, 0, 6), whole);
        assert_eq!(span(32, 2, 1, 3), whole[3..]);
        // The same tokens and targets; only what a token may attend to is shorter.
        assert_eq!(ids(&span(8, 0, 0, 24)), ids(&whole));
        assert_eq!(ids(&span(8, 3, 4, 8)), ids(&whole[4..]));
        assert_eq!(ids(&span(16, 0, 5, 2)), ids(&whole)[80..112]);
        assert_eq!(loader.parts(8), 4);
        for seq_len in [0, 5, 64] {
            let span = RowSpan { seq_len, start: 0, first: 0, n_rows: 1 };
            says(&loader.rows(span).unwrap_err(), &[&format!("{seq_len}"), "divisor of 32"]);
        }
    }
}
