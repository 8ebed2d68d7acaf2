//! Classifier that ignores the text.

use super::{check_texts, share_correct};
use crate::{Error, Result};

/// Predicts the most frequent class of the training texts, whatever the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MajorityClass {
    class: usize,
}

impl MajorityClass {
    /// Counts the classes of the training texts. Of equally frequent classes the first wins.
    ///
    /// # Errors
    /// If there are no texts, or a class is not below `n_classes`.
    pub fn fit(train: &[(&str, usize)], n_classes: usize) -> Result<Self> {
        let what = "the most frequent class";
        check_texts(what, train, n_classes)?;
        if train.is_empty() {
            return Err(Error::Empty { what, items: "training texts" });
        }
        let mut counts = vec![0_usize; n_classes];
        for (_, class) in train {
            counts[*class] += 1;
        }
        let class = (0..n_classes).rev().max_by_key(|&class| counts[class]).unwrap_or(0);
        Ok(Self { class })
    }

    /// The most frequent class.
    #[must_use]
    pub fn class(&self) -> usize {
        self.class
    }

    /// The most frequent class.
    #[must_use]
    pub fn predict(&self, _text: &str) -> usize {
        self.class
    }

    /// The share of `texts` that are of the most frequent class.
    ///
    /// # Errors
    /// If there are no texts.
    pub fn accuracy(&self, texts: &[(&str, usize)]) -> Result<f64> {
        share_correct(texts, |text| self.predict(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_class_wins_and_ties_go_to_the_first() {
        let model = MajorityClass::fit(&[("a", 1), ("b", 2), ("c", 2)], 3).unwrap();
        assert_eq!(model.class(), 2);
        assert_eq!(model.accuracy(&[("x", 2), ("y", 0)]).unwrap(), 0.5);
        assert_eq!(MajorityClass::fit(&[("a", 2), ("b", 1)], 3).unwrap().predict("x"), 1);
    }

    #[test]
    fn no_texts_and_unknown_classes_are_errors() {
        assert!(matches!(MajorityClass::fit(&[], 2), Err(Error::Empty { .. })));
        assert!(matches!(MajorityClass::fit(&[("a", 2)], 2), Err(Error::ClassOutOfRange { .. })));
        let model = MajorityClass::fit(&[("a", 1)], 2).unwrap();
        assert!(matches!(model.accuracy(&[]), Err(Error::Empty { .. })));
    }
}
