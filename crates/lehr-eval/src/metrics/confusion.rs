//! Counts of predicted and expected classes, and the metrics derived from them.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The share of predictions that equal the expected class: `correct / n`.
///
/// # Errors
/// If the lists are empty or differ in length.
pub fn accuracy(predicted: &[usize], expected: &[usize]) -> Result<f64> {
    check_lists("accuracy", predicted, expected)?;
    let n_correct = predicted.iter().zip(expected).filter(|(p, e)| p == e).count();
    Ok(n_correct as f64 / expected.len() as f64)
}

/// Number of texts of each class for which each class was predicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// `counts[expected][predicted]`, square.
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Counts pairs of classes, all below `n_classes`.
    ///
    /// # Errors
    /// If the lists are empty or differ in length, or a class is too large.
    pub fn new(predicted: &[usize], expected: &[usize], n_classes: usize) -> Result<Self> {
        let what = "confusion counts";
        check_lists(what, predicted, expected)?;
        let mut counts = vec![vec![0; n_classes]; n_classes];
        for (index, (&p, &e)) in predicted.iter().zip(expected).enumerate() {
            let class = p.max(e);
            if class >= n_classes {
                return Err(Error::ClassOutOfRange { what, index, class, n_classes });
            }
            counts[e][p] += 1;
        }
        Ok(Self { counts })
    }

    /// The number of classes.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.counts.len()
    }

    /// The counts, one row per expected class, one column per predicted class.
    #[must_use]
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// The number of texts.
    #[must_use]
    pub fn n_total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// The number of texts whose class was predicted.
    #[must_use]
    pub fn n_correct(&self) -> u64 {
        (0..self.n_classes()).map(|c| self.counts[c][c]).sum()
    }

    /// `n_correct / n_total`.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.n_correct() as f64 / self.n_total() as f64
    }

    /// Of the texts predicted as `class`, the share that are: `TP / (TP + FP)`.
    /// `None` if the class was never predicted or does not exist.
    #[must_use]
    pub fn precision(&self, class: usize) -> Option<f64> {
        share(*self.counts.get(class)?.get(class)?, self.n_predicted(class))
    }

    /// Of the texts of `class`, the share that were found: `TP / (TP + FN)`.
    /// `None` if there are no such texts.
    #[must_use]
    pub fn recall(&self, class: usize) -> Option<f64> {
        share(*self.counts.get(class)?.get(class)?, self.n_expected(class))
    }

    /// Harmonic mean of precision and recall: `2 TP / (2 TP + FP + FN)`.
    /// `None` if the class occurs neither among the expected nor the predicted classes.
    #[must_use]
    pub fn f1(&self, class: usize) -> Option<f64> {
        let n_hits = *self.counts.get(class)?.get(class)?;
        share(2 * n_hits, self.n_predicted(class) + self.n_expected(class))
    }

    /// The unweighted mean of [`Confusion::f1`] over the classes that occur, expected or predicted.
    ///
    /// A class that is never found counts as 0. So always predicting the most frequent class gives
    /// a low value, even where accuracy is high. This is scikit-learn's definition.
    #[must_use]
    pub fn macro_f1(&self) -> f64 {
        let scores: Vec<f64> = (0..self.n_classes()).filter_map(|c| self.f1(c)).collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    }

    fn n_expected(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    fn n_predicted(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn check_lists(what: &'static str, predicted: &[usize], expected: &[usize]) -> Result<()> {
    if predicted.len() != expected.len() {
        return Err(Error::LengthMismatch {
            what,
            left: predicted.len(),
            left_name: "predicted classes",
            right: expected.len(),
            right_name: "expected classes",
        });
    }
    if expected.is_empty() {
        return Err(Error::Empty { what, items: "texts" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [usize; 6] = [0, 1, 2, 0, 1, 2];
    const PREDICTED: [usize; 6] = [0, 2, 1, 0, 0, 1];

    #[test]
    fn macro_f1_is_the_example_of_the_scikit_learn_manual() {
        let confusion = Confusion::new(&PREDICTED, &EXPECTED, 3).unwrap();
        assert_eq!(confusion.counts(), [vec![2, 0, 0], vec![1, 0, 1], vec![0, 2, 0]]);
        assert!((confusion.macro_f1() - 0.8 / 3.0).abs() < 1e-12);
        assert!((confusion.accuracy() - 2.0 / 6.0).abs() < 1e-12);
        assert_eq!(confusion.accuracy(), accuracy(&PREDICTED, &EXPECTED).unwrap());
        assert_eq!(confusion.precision(0), Some(2.0 / 3.0));
        assert_eq!(confusion.recall(0), Some(1.0));
        assert_eq!(confusion.f1(1), Some(0.0));
    }

    #[test]
    fn a_class_that_never_occurs_does_not_count() {
        let confusion = Confusion::new(&[0, 1], &[0, 1], 5).unwrap();
        assert_eq!(confusion.f1(4), None);
        assert_eq!(confusion.f1(99), None);
        assert_eq!(confusion.macro_f1(), 1.0);
    }

    #[test]
    fn always_the_same_class_has_a_low_macro_f1() {
        let confusion = Confusion::new(&[0; 10], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 2).unwrap();
        assert_eq!(confusion.accuracy(), 0.9);
        assert!((confusion.macro_f1() - 0.5 * 18.0 / 19.0).abs() < 1e-12);
        assert_eq!(confusion.precision(1), None);
        assert_eq!(confusion.recall(1), Some(0.0));
    }

    #[test]
    fn lists_that_do_not_fit_are_errors() {
        assert!(matches!(accuracy(&[], &[]), Err(Error::Empty { .. })));
        assert!(matches!(accuracy(&[1], &[1, 2]), Err(Error::LengthMismatch { .. })));
        let error = Confusion::new(&[0, 3], &[0, 1], 3).unwrap_err();
        let expected = "computing confusion counts: item 1 has class 3, expected a class below 3";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn counts_survive_json() {
        let confusion = Confusion::new(&PREDICTED, &EXPECTED, 3).unwrap();
        let text = serde_json::to_string(&confusion).unwrap();
        assert_eq!(serde_json::from_str::<Confusion>(&text).unwrap(), confusion);
    }
}
