//! `lehr eval` of a classifier: accuracy, F1 and confusion of labels.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lehr_data::{Labelled, LabelledFields, Part, Reading, read_labelled};
use lehr_eval::metrics::{Confusion, wilson};
use serde_json::json;

use super::{GROUP, Probabilities, TextClassifier, best, warn_of_cut};
use crate::cmd::compute::DeviceArgs;
use crate::fail::Hinted;

/// Mistakes that are shown.
const MISTAKES: usize = 5;
/// Characters of a text that are shown.
const TEXT_CHARS: usize = 100;

/// Compares the labels that the classifier at `path` gives with those of the data at `data`.
pub(crate) fn evaluate(
    path: &Path,
    data: &Path,
    fields: &LabelledFields,
    skip_bad: bool,
    device: &DeviceArgs,
    as_json: bool,
) -> Result<()> {
    let reading = Reading::new(Part::Evaluation, skip_bad);
    let texts = read_labelled(data, fields, &reading)?;
    reading.take_notes().iter().for_each(|note| eprintln!("{note}"));
    let classifier = TextClassifier::open(path, device)?;
    let start = Instant::now();
    let score = Score::of(&classifier, &texts)?;
    let seconds = start.elapsed().as_secs_f64();
    match as_json {
        true => score.print_json(seconds),
        false => score.print_table(seconds),
    }
}

/// The labels of all texts, found and expected.
struct Score<'a> {
    labels: &'a [String],
    confusion: Confusion,
    /// The most certain mistakes: probability, the label that was given, the text.
    mistakes: Vec<(f32, usize, &'a Labelled)>,
}

impl<'a> Score<'a> {
    fn of(classifier: &'a TextClassifier, texts: &'a [Labelled]) -> Result<Self> {
        let labels = classifier.labels();
        let (mut found, mut expected, mut mistakes) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_cut = 0;
        for group in texts.chunks(GROUP) {
            let contents: Vec<&str> = group.iter().map(|text| text.text.as_str()).collect();
            let Probabilities { of_texts, n_cut: n } = classifier.probabilities(&contents)?;
            n_cut += n;
            for (text, probabilities) in group.iter().zip(of_texts) {
                let class = labels.iter().position(|label| *label == text.label);
                let class = class.ok_or_else(|| {
                    Hinted::error(
                        format!(
                            "the data has the label {:?}, the classifier {}",
                            text.label,
                            labels.join(", ")
                        ),
                        "use data with the labels of the classifier",
                    )
                })?;
                let best = best(&probabilities);
                if best != class {
                    mistakes.push((probabilities[best], best, text));
                }
                found.push(best);
                expected.push(class);
            }
        }
        warn_of_cut(n_cut, classifier.tokens_max());
        mistakes.sort_by(|a, b| b.0.total_cmp(&a.0));
        mistakes.truncate(MISTAKES);
        let confusion = Confusion::new(&found, &expected, labels.len())?;
        Ok(Self { labels, confusion, mistakes })
    }

    fn print_json(&self, seconds: f64) -> Result<()> {
        let Self { labels, confusion, mistakes } = self;
        let interval = wilson(confusion.n_correct(), confusion.n_total())?;
        let by_label: serde_json::Map<_, _> = (0..labels.len())
            .map(|class| {
                let numbers = json!({
                    "precision": confusion.precision(class), "recall": confusion.recall(class),
                    "f1": confusion.f1(class),
                });
                (labels[class].clone(), numbers)
            })
            .collect();
        let mistake = |(p, class, text): &(f32, usize, &Labelled)| {
            json!({ "text": text.text, "expected": text.label, "label": labels[*class],
                    "probability": p })
        };
        println!(
            "{}",
            json!({
                "accuracy": confusion.accuracy(), "low": interval.low, "high": interval.high,
                "macro_f1": confusion.macro_f1(), "by_label": by_label, "labels": labels,
                "confusion": confusion.counts(), "texts": confusion.n_total(),
                "mistakes": mistakes.iter().map(mistake).collect::<Vec<_>>(), "seconds": seconds,
            })
        );
        Ok(())
    }

    fn print_table(&self, seconds: f64) -> Result<()> {
        let Self { labels, confusion, mistakes } = self;
        let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(8);
        let head: String = labels.iter().map(|label| format!(" {label:>width$}")).collect();
        println!("{:width$} {:>9} {:>9} {:>9}  given:{head}", "", "precision", "recall", "F1");
        for (class, label) in labels.iter().enumerate() {
            let percent = |share: Option<f64>| match share {
                Some(share) => format!("{:>9.2}", 100.0 * share),
                None => format!("{:>9}", "–"),
            };
            let [p, r, f] =
                [confusion.precision(class), confusion.recall(class), confusion.f1(class)]
                    .map(percent);
            let given = confusion.counts()[class].iter().map(|n| format!(" {n:>width$}"));
            println!("{label:width$} {p} {r} {f}        {}", given.collect::<String>());
        }
        let interval = wilson(confusion.n_correct(), confusion.n_total())?;
        println!(
            "accuracy {:.2} % (95 % interval {:.2} to {:.2}), mean F1 of labels {:.2}; {} texts, \
             {seconds:.1} s",
            100.0 * confusion.accuracy(),
            100.0 * interval.low,
            100.0 * interval.high,
            100.0 * confusion.macro_f1(),
            confusion.n_total()
        );
        if !mistakes.is_empty() {
            println!("the most certain mistakes:");
        }
        for (p, class, text) in mistakes {
            let start: String = text.text.chars().take(TEXT_CHARS).collect();
            let start = start.replace(['\n', '\r'], " ");
            println!("  {} instead of {}, {p:.3}: {start}", labels[*class], text.label);
        }
        Ok(())
    }
}
