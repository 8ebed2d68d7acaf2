//! `lehr eval` of a model that tags words: precision, recall and F1 of its entities.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lehr_data::entities::{Entity, Scheme, SpanMode, TaggedText};
use lehr_data::{Part, Reading, read_tagged};
use lehr_eval::metrics::{EntityCount, EntityCounts};
use serde_json::json;

use super::{EntityModel, Found, GROUP};
use crate::cmd::compute::DeviceArgs;

/// Compares the entities that the model at `path` finds with those of the data at `data`.
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
    let score = Score::of(&model, &texts)?;
    let seconds = start.elapsed().as_secs_f64();
    match as_json {
        true => score.print_json(seconds),
        false => score.print_table(seconds),
    }
    Ok(())
}

/// Entities and words of all texts, found and expected.
#[derive(Default)]
struct Score {
    lenient: EntityCounts,
    strict: EntityCounts,
    n_texts: usize,
    n_words: usize,
    /// Words with the right tag.
    n_right: usize,
    /// Whether the strict mode of IOB2 says anything: the model has its tags.
    is_iob2: bool,
}

impl Score {
    fn of(model: &EntityModel, texts: &[TaggedText]) -> Result<Self> {
        let is_iob2 = model.tags().scheme() == Scheme::Iob2;
        let mut score = Self { n_texts: texts.len(), is_iob2, ..Self::default() };
        let (mut n_untagged, mut n_cut) = (0, 0);
        for group in texts.chunks(GROUP) {
            let parts: Vec<_> = group.iter().map(TaggedText::parts).collect();
            for (text, found) in group.iter().zip(model.find(&parts)?) {
                let expected = model.tags().classes(text.words.len(), &text.entities)?;
                score.n_words += expected.len();
                n_untagged += found.n_untagged;
                n_cut += found.n_cut;
                let right = expected.iter().zip(&found.classes).filter(|(e, f)| e == f);
                score.n_right += right.count();
                let modes = [
                    (&mut score.lenient, SpanMode::Lenient),
                    (&mut score.strict, SpanMode::Strict),
                ];
                for (counts, mode) in modes {
                    let found = model.tags().entities(&found.classes, mode);
                    counts.add(keys(&found), keys(&text.entities));
                }
            }
        }
        Found::warn(n_untagged, n_cut);
        Ok(score)
    }

    /// Returns the F1 in the strict mode of IOB2, if the model has its tags.
    fn strict_f1(&self) -> Option<f64> {
        self.is_iob2.then(|| self.strict.total().f1())
    }

    /// Returns the share of words with the right tag.
    fn accuracy(&self) -> f64 {
        self.n_right as f64 / self.n_words.max(1) as f64
    }

    fn print_json(&self, seconds: f64) {
        let numbers = |count: &EntityCount| {
            json!({
                "precision": count.precision(), "recall": count.recall(), "f1": count.f1(),
                "found": count.n_found, "expected": count.n_expected, "right": count.n_right,
            })
        };
        let types = self.lenient.by_type().iter();
        let by_type: serde_json::Map<_, _> =
            types.map(|(label, count)| (label.clone(), numbers(count))).collect();
        println!(
            "{}",
            json!({
                "all": numbers(&self.lenient.total()), "macro_f1": self.lenient.macro_f1(),
                "strict_f1": self.strict_f1(), "by_type": by_type,
                "word_accuracy": self.accuracy(), "words": self.n_words, "texts": self.n_texts,
                "seconds": seconds,
            })
        );
    }

    fn print_table(&self, seconds: f64) {
        println!("{:<12} {:>9} {:>9} {:>9} {:>9}", "", "precision", "recall", "F1", "expected");
        let row = |name: &str, count: &EntityCount| {
            let [p, r, f] = [count.precision(), count.recall(), count.f1()].map(|x| 100.0 * x);
            println!("{name:<12} {p:>9.2} {r:>9.2} {f:>9.2} {:>9}", count.n_expected);
        };
        self.lenient.by_type().iter().for_each(|(label, count)| row(label, count));
        row("all", &self.lenient.total());
        let strict = self.strict_f1();
        let strict = strict.map_or(String::new(), |f1| format!("strict F1 {:.2}, ", 100.0 * f1));
        println!(
            "{strict}mean F1 of types {:.2}; {:.2} % of {} words have the right tag; {} texts, \
             {seconds:.1} s",
            100.0 * self.lenient.macro_f1(),
            100.0 * self.accuracy(),
            self.n_words,
            self.n_texts
        );
    }
}

fn keys(entities: &[Entity]) -> impl Iterator<Item = (Range<usize>, &str)> {
    entities.iter().map(|entity| (entity.words.clone(), entity.label.as_str()))
}
