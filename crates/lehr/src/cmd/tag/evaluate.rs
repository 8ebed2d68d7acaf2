//! `lehr eval` of a model that tags words: precision, recall and F1 of its entities.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lehr_data::entities::{Entity, SpanMode, TaggedText};
use lehr_data::{Part, Reading, read_tagged};
use lehr_eval::metrics::{EntityCount, EntityCounts};
use serde_json::json;

use super::{EntityModel, GROUP};
use crate::cmd::compute::DeviceArgs;

/// Compares the entities that the model finds with those of the data at `data`.
pub(crate) fn evaluate(
    path: &Path,
    data: &Path,
    skip_bad: bool,
    device: &DeviceArgs,
    as_json: bool,
) -> Result<()> {
    let reading = Reading::new(Part::Evaluation, skip_bad);
    let texts = read_tagged(data, &reading)?;
    reading.take_notes().iter().for_each(|note| eprintln!("{note}"));
    let model = EntityModel::open(path, device)?;
    let start = Instant::now();
    let (mut lenient, mut strict) = (EntityCounts::default(), EntityCounts::default());
    let (mut n_words, mut n_right) = (0u64, 0u64);
    for group in texts.chunks(GROUP) {
        let parts: Vec<_> = group.iter().map(TaggedText::parts).collect();
        for (text, found) in group.iter().zip(model.find(&parts)?) {
            let expected = model.tags().classes(text.words.len(), &text.entities)?;
            for (counts, mode) in
                [(&mut lenient, SpanMode::Lenient), (&mut strict, SpanMode::Strict)]
            {
                let found = model.tags().entities(&found.classes, mode);
                counts.add(keys(&found), keys(&text.entities));
            }
            n_words += expected.len() as u64;
            let right = expected.iter().zip(&found.classes).filter(|(e, f)| e == f);
            n_right += right.count() as u64;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = n_right as f64 / n_words.max(1) as f64;
    if as_json {
        let numbers = |count: &EntityCount| {
            json!({
                "precision": count.precision(), "recall": count.recall(), "f1": count.f1(),
                "found": count.n_found, "expected": count.n_expected, "right": count.n_right,
            })
        };
        let by_type: serde_json::Map<_, _> = lenient
            .by_type()
            .iter()
            .map(|(label, count)| (label.clone(), numbers(count)))
            .collect();
        println!(
            "{}",
            json!({
                "all": numbers(&lenient.total()), "macro_f1": lenient.macro_f1(),
                "strict_f1": strict.total().f1(), "by_type": by_type,
                "word_accuracy": accuracy, "words": n_words, "texts": texts.len(),
                "seconds": seconds,
            })
        );
        return Ok(());
    }
    println!("{:<12} {:>9} {:>9} {:>9} {:>9}", "", "precision", "recall", "F1", "expected");
    let row = |name: &str, count: &EntityCount| {
        let [p, r, f] = [count.precision(), count.recall(), count.f1()].map(|x| 100.0 * x);
        println!("{name:<12} {p:>9.2} {r:>9.2} {f:>9.2} {:>9}", count.n_expected);
    };
    lenient.by_type().iter().for_each(|(label, count)| row(label, count));
    row("all", &lenient.total());
    println!(
        "F1 in strict IOB2 {:.2}, mean F1 of types {:.2}; {:.2} % of {n_words} words have the right \
         tag; {} texts, {seconds:.1} s",
        100.0 * strict.total().f1(),
        100.0 * lenient.macro_f1(),
        100.0 * accuracy,
        texts.len()
    );
    Ok(())
}

fn keys(entities: &[Entity]) -> impl Iterator<Item = (Range<usize>, &str)> {
    entities.iter().map(|entity| (entity.words.clone(), entity.label.as_str()))
}
