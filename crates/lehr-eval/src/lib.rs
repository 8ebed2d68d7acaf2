//! Quality of a model: metrics, their uncertainty, and baselines.
//!
//! - [`metrics`]: accuracy and F1 of predicted classes, and intervals around measured numbers.
//! - [`baseline`]: what a model has to beat: the most frequent class, and a bag of words.
//! - [`Scorer`]: how well a language model predicts a text.
//! - [`report`]: one HTML file with text, tables, curves and samples.
//!
//! A number without an interval or a baseline says little: 85 % of 100 texts may be 77 % or 91 % of
//! all texts, and a bag of words may reach it without a GPU.

pub mod baseline;
mod error;
pub mod metrics;
mod perplexity;
pub mod report;

pub use error::{Error, Result};
pub use perplexity::{Perplexity, PerplexityError, Scorer, Windows};
