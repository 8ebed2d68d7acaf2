//! Text classifiers without a neural network, which a fine-tuned model has to beat.
//!
//! [`MajorityClass`] is the floor. [`BagOfWords`] is a serious opponent: on a few thousand labelled
//! texts a logistic regression on words is often as good as a small transformer, and fits in
//! seconds.

mod bag_of_words;
mod features;
mod lbfgs;
mod logistic;
mod majority;

pub use bag_of_words::BagOfWords;
pub use majority::MajorityClass;

use crate::{Error, Result};

/// Checks that there are texts and that every class is below `n_classes`.
fn check_texts(what: &'static str, texts: &[(&str, usize)], n_classes: usize) -> Result<()> {
    match texts.iter().position(|(_, class)| *class >= n_classes) {
        None => Ok(()),
        Some(index) => {
            Err(Error::ClassOutOfRange { what, index, class: texts[index].1, n_classes })
        }
    }
}

/// The share of texts whose class is predicted.
fn share_correct(texts: &[(&str, usize)], predict: impl Fn(&str) -> usize) -> Result<f64> {
    if texts.is_empty() {
        return Err(Error::Empty { what: "the accuracy of a baseline", items: "texts" });
    }
    let n_correct = texts.iter().filter(|(text, class)| predict(text) == *class).count();
    Ok(n_correct as f64 / texts.len() as f64)
}
