//! Logistic regression on the words of a text.

use super::features::{Rows, Vocabulary};
use super::logistic::{Problem, argmax, scores, softmax};
use super::{check_texts, share_correct};
use crate::{Error, Result};

/// Bounds the memory of fitting: 8 bytes for each weight, about 20 times.
const MAX_WEIGHTS: usize = 2_000_000;
/// Inverse strengths of the regularisation that are tried, strongest first.
const GRID: [f64; 6] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
/// The inverse strength when there are no texts to choose it by.
const DEFAULT_C: f64 = 3.0;

/// A linear classifier of tf-idf features, chosen on a development set.
///
/// - Features: lower-cased words and pairs of words; in scripts without spaces, such as Chinese,
///   characters and pairs of characters; and runs of punctuation. Taken from the training texts
///   only, from at least two of them when there are more than 1,000.
/// - Weights: `(1 + ln tf) · (ln((1 + n) / (1 + df)) + 1)`, each text divided by its norm.
/// - Model: multinomial logistic regression with `λ/2 ‖W‖²`, `λ = 1 / (C n)`, minimised by
///   L-BFGS. `C` is taken from a grid: the best accuracy on the development set, then the least
///   loss.
///
/// The same texts give the same classifier: there is no randomness.
#[derive(Clone, Debug)]
pub struct BagOfWords {
    vocabulary: Vocabulary,
    n_classes: usize,
    fitted: Fitted,
}

/// Parameters, and how they came about.
#[derive(Clone, Debug)]
struct Fitted {
    parameters: Vec<f64>,
    c: f64,
    is_converged: bool,
}

/// Quality of parameters on the development set; more is better, in this order.
type Quality = (usize, f64);

impl BagOfWords {
    /// Fits on `train`. `dev` only selects the strength of the regularisation; if it is empty, `C =
    /// 3`. Classes are below `n_classes`.
    ///
    /// # Errors
    /// If there are no training texts, or a class is not below `n_classes`.
    pub fn fit(train: &[(&str, usize)], dev: &[(&str, usize)], n_classes: usize) -> Result<Self> {
        check_texts("the training texts of a bag of words", train, n_classes)?;
        check_texts("the development texts of a bag of words", dev, n_classes)?;
        if train.is_empty() {
            return Err(Error::Empty { what: "a bag of words", items: "training texts" });
        }
        let max_features = MAX_WEIGHTS / n_classes;
        let vocabulary = Vocabulary::new(train.iter().map(|(text, _)| *text), max_features);
        let rows = vocabulary.rows(train.iter().map(|(text, _)| *text));
        let classes: Vec<usize> = train.iter().map(|(_, class)| *class).collect();
        let n_features = vocabulary.len();
        let problem = Problem { rows: &rows, classes: &classes, n_features, n_classes };
        let dev_rows = vocabulary.rows(dev.iter().map(|(text, _)| *text));
        let quality = |parameters: &[f64]| quality(&dev_rows, dev, parameters, n_classes);
        let grid: &[f64] = if dev.is_empty() { &[DEFAULT_C] } else { &GRID };
        let fitted = choose(&problem, grid, quality);
        Ok(Self { vocabulary, n_classes, fitted })
    }

    /// Returns the class with the greatest score. A text of unknown words gets the class that the
    /// bias prefers.
    #[must_use]
    pub fn predict(&self, text: &str) -> usize {
        argmax(&self.scores(text))
    }

    /// The probability of each class: `softmax(W x + b)`.
    #[must_use]
    pub fn probabilities(&self, text: &str) -> Vec<f64> {
        let mut p = vec![0.0; self.n_classes];
        softmax(&self.scores(text), &mut p);
        p
    }

    /// The share of `texts` whose class is predicted.
    ///
    /// # Errors
    /// If there are no texts.
    pub fn accuracy(&self, texts: &[(&str, usize)]) -> Result<f64> {
        share_correct(texts, |text| self.predict(text))
    }

    /// The number of features.
    #[must_use]
    pub fn n_features(&self) -> usize {
        self.vocabulary.len()
    }

    /// The chosen inverse strength of the regularisation.
    #[must_use]
    pub fn c(&self) -> f64 {
        self.fitted.c
    }

    /// Whether fitting ended within 1e-5 nats per text of the best value. If not, a report should
    /// say so, because the baseline is weaker than possible.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        self.fitted.is_converged
    }

    fn scores(&self, text: &str) -> Vec<f64> {
        let row = self.vocabulary.rows(std::iter::once(text));
        scores(&row, &self.fitted.parameters, self.n_classes)
    }
}

/// Fits for each `C` in turn, starting from the previous result, and keeps the best. Stops after
/// two in a row without improvement, because weaker regularisation only takes longer.
fn choose(problem: &Problem<'_>, grid: &[f64], quality: impl Fn(&[f64]) -> Quality) -> Fitted {
    let mut parameters = vec![0.0; problem.n_parameters()];
    let mut best: Option<(Quality, Fitted)> = None;
    let mut n_worse = 0;
    for &c in grid {
        let lambda = 1.0 / (c * problem.rows.len() as f64);
        let is_converged = problem.minimise(lambda, &mut parameters).is_converged;
        let found = quality(&parameters);
        if best.as_ref().is_none_or(|(best, _)| found > *best) {
            best = Some((found, Fitted { parameters: parameters.clone(), c, is_converged }));
            n_worse = 0;
        } else {
            n_worse += 1;
        }
        if n_worse == 2 {
            break;
        }
    }
    best.expect("the grid has at least one value").1
}

/// The number of texts that are classified correctly, and the sum of `ln p` of their classes.
fn quality(rows: &Rows, texts: &[(&str, usize)], parameters: &[f64], n_classes: usize) -> Quality {
    let mut p = vec![0.0; n_classes];
    let mut quality = (0, 0.0);
    for (z, (_, class)) in scores(rows, parameters, n_classes).chunks_exact(n_classes).zip(texts) {
        softmax(z, &mut p);
        quality.0 += usize::from(argmax(z) == *class);
        quality.1 += p[*class].max(f64::MIN_POSITIVE).ln();
    }
    quality
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAIN: [(&str, usize); 8] = [
        ("a good film, really good", 1),
        ("a bad film, really bad", 0),
        ("good actors", 1),
        ("not good", 0),
        ("bad actors", 0),
        ("这本书很好", 1),
        ("这本书很差", 0),
        ("好看", 1),
    ];

    #[test]
    fn words_that_decide_are_found_in_two_scripts() {
        let model = BagOfWords::fit(&TRAIN, &TRAIN, 2).unwrap();
        assert_eq!(model.accuracy(&TRAIN).unwrap(), 1.0);
        assert_eq!(model.predict("GOOD book"), 1);
        assert_eq!(model.predict("质量差"), 0);
        assert!(model.is_converged());
    }

    #[test]
    fn fitting_twice_gives_the_same_probabilities() {
        let [a, b] = [(); 2].map(|()| BagOfWords::fit(&TRAIN, &TRAIN, 2).unwrap());
        let text = "good film but bad actors";
        assert_eq!(a.probabilities(text), b.probabilities(text));
        assert!((a.probabilities(text).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn unknown_words_get_the_most_frequent_class() {
        let model = BagOfWords::fit(&[("a", 2), ("b", 2), ("c", 0)], &[], 3).unwrap();
        assert_eq!(model.predict("unheard of"), 2);
        assert_eq!(model.predict(""), 2);
        assert_eq!(model.c(), DEFAULT_C);
    }

    #[test]
    fn texts_without_any_feature_can_be_fitted() {
        let model = BagOfWords::fit(&[("", 0), (" ", 1), ("", 1)], &[("", 1)], 2).unwrap();
        assert_eq!((model.n_features(), model.predict("x")), (0, 1));
    }

    #[test]
    fn one_class_is_always_predicted() {
        let model = BagOfWords::fit(&[("a", 0)], &[("b", 0)], 1).unwrap();
        assert_eq!(model.predict("anything"), 0);
    }

    #[test]
    fn no_texts_and_unknown_classes_are_errors() {
        assert!(matches!(BagOfWords::fit(&[], &[], 2), Err(Error::Empty { .. })));
        let error = BagOfWords::fit(&TRAIN, &[("x", 2)], 2).unwrap_err();
        assert!(matches!(error, Error::ClassOutOfRange { class: 2, .. }));
        assert!(BagOfWords::fit(&[("x", 0)], &[], 0).is_err());
    }
}
