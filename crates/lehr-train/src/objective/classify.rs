//! Predicting the label of a text.

use lehr_data::Batch;
use lehr_model::{Classifier, Model, Tokens};
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;

use super::{Objective, tokens_of};
use crate::Result;

/// Cross-entropy of the labels at the last token of each text.
pub struct Classify {
    classifier: Classifier,
    tokenizer: Tokenizer,
}

impl Classify {
    /// Trains `classifier`.
    #[must_use]
    pub fn new(classifier: Classifier, tokenizer: Tokenizer) -> Self {
        Self { classifier, tokenizer }
    }

    /// The classifier.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }
}

fn parts(batch: &Batch) -> Result<(Tokens, Tensor, Tensor)> {
    let n = [batch.class_labels.len()];
    let ends = Tensor::from_ids(&batch.class_positions, n)?;
    Ok((tokens_of(batch)?, ends, Tensor::from_ids(&batch.class_labels, n)?))
}

impl Objective for Classify {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Tensor> {
        let (tokens, ends, labels) = parts(batch)?;
        Ok(self.classifier.loss(&tokens, &ends, &labels, normalizer)?)
    }

    fn n_correct(&self, batch: &Batch) -> Result<Option<usize>> {
        let (tokens, ends, labels) = parts(batch)?;
        let predicted = self.classifier.predict(&tokens, &ends)?;
        let right = |(p, l): &(&usize, &i32)| **p == **l as usize;
        Ok(Some(predicted.iter().zip(labels.ids()).filter(right).count()))
    }

    fn model(&self) -> &Model {
        self.classifier.model()
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> serde_json::Value {
        self.classifier.config_json()
    }
}
