//! Counts of found, expected and right entities, and the metrics derived from them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Entities of one type, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityCount {
    /// Found with the expected bounds and the expected type.
    pub n_right: u64,
    /// Found.
    pub n_found: u64,
    /// Expected.
    pub n_expected: u64,
}

impl EntityCount {
    /// The share of the found ones that are right; 0 if none is found.
    #[must_use]
    pub fn precision(&self) -> f64 {
        share(self.n_right, self.n_found)
    }

    /// The share of the expected ones that are found; 0 if none is expected.
    #[must_use]
    pub fn recall(&self) -> f64 {
        share(self.n_right, self.n_expected)
    }

    /// `2 n_right / (n_found + n_expected)`, the harmonic mean of precision and recall; 0 if there
    /// are no entities at all.
    #[must_use]
    pub fn f1(&self) -> f64 {
        share(2 * self.n_right, self.n_found + self.n_expected)
    }

    fn add(&mut self, other: Self) {
        self.n_right += other.n_right;
        self.n_found += other.n_found;
        self.n_expected += other.n_expected;
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// Counts of entities by type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityCounts {
    by_type: BTreeMap<String, EntityCount>,
}

impl EntityCounts {
    /// Adds the entities of a text: words and type of each. An entity is right if bounds and type
    /// are the expected ones.
    pub fn add<'a>(
        &mut self,
        found: impl IntoIterator<Item = (Range<usize>, &'a str)>,
        expected: impl IntoIterator<Item = (Range<usize>, &'a str)>,
    ) {
        let keys = |(words, label): (Range<usize>, &'a str)| (words.start, words.end, label);
        let expected: BTreeSet<_> = expected.into_iter().map(keys).collect();
        let found: BTreeSet<_> = found.into_iter().map(keys).collect();
        for entity in &expected {
            self.of(entity.2).n_expected += 1;
        }
        for entity in &found {
            let is_right = expected.contains(entity);
            let count = self.of(entity.2);
            count.n_found += 1;
            count.n_right += u64::from(is_right);
        }
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Self) {
        for (label, count) in &other.by_type {
            self.of(label).add(*count);
        }
    }

    fn of(&mut self, label: &str) -> &mut EntityCount {
        self.by_type.entry(label.to_owned()).or_default()
    }

    /// Returns the counts of each type, in the order of the alphabet.
    #[must_use]
    pub fn by_type(&self) -> &BTreeMap<String, EntityCount> {
        &self.by_type
    }

    /// Returns the sum over all types, from which micro averages follow.
    #[must_use]
    pub fn total(&self) -> EntityCount {
        let mut total = EntityCount::default();
        self.by_type.values().for_each(|count| total.add(*count));
        total
    }

    /// Returns the mean of the F1 of all types; 0 without types.
    #[must_use]
    pub fn macro_f1(&self) -> f64 {
        let sum: f64 = self.by_type.values().map(EntityCount::f1).sum();
        if self.by_type.is_empty() { 0.0 } else { sum / self.by_type.len() as f64 }
    }
}
