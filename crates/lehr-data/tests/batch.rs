//! What a batch says beside its tokens: layouts, sequences, and the check of both.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{TOKENIZER, says};
use lehr_data::{
    Batch, ClassLoader, LabelSet, Labelled, Layout, LayoutRule, Loader, LoaderOptions, Sequence,
};

/// As in GLM: all but the last two tokens are a context, which those two are a block after.
fn blocks() -> LayoutRule {
    LayoutRule::new(|ids| {
        let prefix_len = ids.len().checked_sub(2).ok_or("a segment of less than two tokens")?;
        let position = |t: usize| t.min(prefix_len) as i32;
        let block_position = |t: usize| (t + 1).saturating_sub(prefix_len) as i32;
        Ok(Layout {
            positions: (0..ids.len()).map(position).collect(),
            block_positions: Some((0..ids.len()).map(block_position).collect()),
            prefix_len,
        })
    })
}

fn loader(texts: &[&str], options: LoaderOptions) -> ClassLoader {
    let label = |(i, text): (usize, &&str)| Labelled {
        text: (*text).to_owned(),
        label: ["x", "y"][i % 2].to_owned(),
    };
    let examples: Vec<_> = texts.iter().enumerate().map(label).collect();
    let labels = LabelSet::from_names(["x", "y"].map(String::from)).unwrap();
    ClassLoader::new(&examples, &labels, &TOKENIZER, options).unwrap()
}

#[test]
fn a_layout_places_each_segment_by_itself() {
    let texts = ["abcdef", "abc", "ab"];
    let plain = loader(&texts, LoaderOptions::sequential(1, 16));
    let placed = plain.clone().with_layout(blocks());
    let (plain, placed) = (plain.batch(0).unwrap(), placed.batch(0).unwrap());
    placed.validate().unwrap();
    assert_eq!((&plain.tokens, &plain.sequences), (&placed.tokens, &placed.sequences));
    assert!(plain.block_positions.is_empty() && plain.prefix_lens.is_empty());
    assert_eq!(placed.sequences.len(), 3);
    for Sequence { start, end, .. } in placed.sequences {
        let (len, prefix) = (end - start, end - start - 2);
        let want: Vec<_> = (0..len).map(|t| t.min(prefix) as i32).collect();
        assert_eq!(placed.positions[start..end], want);
        let want: Vec<_> = (0..len).map(|t| (t + 1).saturating_sub(prefix) as i32).collect();
        assert_eq!(placed.block_positions[start..end], want);
        assert!(placed.prefix_lens[start..end].iter().all(|n| *n == prefix as i32));
    }
}

#[test]
fn a_layout_that_does_not_fit_is_refused() {
    let short = loader(&["", "abc"], LoaderOptions::sequential(2, 8)).with_layout(blocks());
    says(&short.batch(0).unwrap_err(), &["placing the tokens", "less than two tokens"]);
    let wrong = LayoutRule::new(|_| {
        Ok(Layout { positions: vec![0], block_positions: None, prefix_len: 0 })
    });
    let loader = loader(&["abc"], LoaderOptions::sequential(1, 8)).with_layout(wrong);
    says(&loader.batch(0).unwrap_err(), &["1 and 4 positions", "for 4 tokens"]);
}

/// One row of two segments and padding; the segments are two answers of one group.
fn pair() -> Batch {
    let sequence = |start, end| Sequence { row: 0, start, end, group: 0, labels: Vec::new() };
    Batch {
        segment_starts: vec![0, 0, 2, 2, 2, 5],
        positions: vec![0, 1, 0, 1, 2, 0],
        sequences: vec![sequence(0, 2), sequence(2, 5)],
        n_targets: 1,
        ..Batch::padding(1, 6, 0)
    }
}

#[test]
fn a_batch_whose_parts_contradict_one_another_is_refused() {
    pair().validate().unwrap();
    assert_eq!(pair().sequence_ends(), [1, 4]);
    let broken = |breaks: &dyn Fn(&mut Batch), part: &str| {
        let mut batch = pair();
        breaks(&mut batch);
        says(&batch.validate().unwrap_err(), &["checking a batch", part]);
    };
    broken(&|b| b.targets.truncate(5), "targets has 5 elements, expected 6");
    broken(&|b| b.prefix_lens = vec![0; 3], "prefix_lens has 3 elements");
    broken(&|b| b.block_positions = vec![0; 7], "block_positions has 7 elements");
    broken(&|b| b.segment_starts[3] = 4, "the segment of token 3 begins at 4");
    broken(&|b| b.segment_starts[3] = 1, "the segment of token 3 begins at 1");
    broken(&|b| b.segment_starts[0] = -1, "the segment of token 0 begins at -1");
    broken(&|b| b.positions[1] = -1, "the position of token 1 is -1");
    broken(&|b| b.prefix_lens = vec![0, 0, 0, -3, 0, 0], "the prefix of token 3 has -3 tokens");
    broken(&|b| b.sequences[1].end = 6, "sequence 1 is 2..6 of row 0: no segment");
    broken(&|b| b.sequences[1].row = 1, "sequence 1 is 2..5 of row 1: no segment");
    broken(&|b| b.sequences[0].end = 0, "sequence 0 is 0..0");
    broken(&|b| b.sequences[1].group = 2, "sequence 1 is of group 2 after 1 groups");
}
