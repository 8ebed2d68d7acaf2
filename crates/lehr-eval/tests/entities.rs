//! Entities and their metrics equal those of seqeval, in its default and its strict mode.
//! `tools/golden/entities.py` wrote what is expected.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_data::entities::{Entity, SpanMode, spans};
use lehr_eval::metrics::EntityCounts;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/entities.json")).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn counts(case: &Value, mode: SpanMode) -> EntityCounts {
    fn keys(entities: &[Entity]) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
        entities.iter().map(|entity| (entity.words.clone(), entity.label.as_str()))
    }
    let mut counts = EntityCounts::default();
    for (found, expected) in strings(&case["found"]).into_iter().zip(strings(&case["expected"])) {
        let [found, expected] = [found, expected].map(|tags| spans(tags.split(' '), mode));
        counts.add(keys(&found), keys(&expected));
    }
    counts
}

#[test]
fn metrics_equal_seqeval() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1000);
    for (index, case) in cases.iter().enumerate() {
        for (name, mode) in [("lenient", SpanMode::Lenient), ("strict", SpanMode::Strict)] {
            let found = counts(case, mode);
            let total = found.total();
            let found = [total.precision(), total.recall(), total.f1(), found.macro_f1()];
            let expected = &case[name];
            let micro = expected["micro"].as_array().unwrap().iter();
            let expected = micro.chain([&expected["macro_f1"]]).map(|v| v.as_f64().unwrap());
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "case {index}, {name}: {case}");
            }
        }
    }
}

#[test]
fn all_schemes_are_read_as_seqeval_reads_them() {
    let golden = golden();
    for case in golden["schemes"].as_array().unwrap() {
        let tags = case["tags"].as_str().unwrap();
        let found: Vec<_> = spans(tags.split(' '), SpanMode::Lenient)
            .into_iter()
            .map(|e| (e.label, e.words.start as u64, e.words.end as u64))
            .collect();
        let expected: Vec<(String, u64, u64)> =
            serde_json::from_value(case["entities"].clone()).unwrap();
        assert_eq!(found, expected, "{tags}");
    }
}

#[test]
fn letters_of_other_schemes_stand_for_the_same_entities() {
    let bioes = "B-A I-A E-A S-B O B-B E-B";
    for (from, to) in [(["I", "E", "S"], ["M", "E", "S"]), (["I", "E", "S"], ["I", "L", "U"])] {
        let mut tags = bioes.to_owned();
        for (from, to) in from.iter().zip(to) {
            tags = tags.replace(&format!("{from}-"), &format!("{to}-"));
        }
        let [found, expected] =
            [tags.as_str(), bioes].map(|tags| spans(tags.split(' '), SpanMode::Lenient));
        assert_eq!(found, expected, "{tags}");
        assert_eq!(found.len(), 3);
    }
}
