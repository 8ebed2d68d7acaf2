//! Classification of texts.

use lehr_data::{Batch, Sequence};
use lehr_infer::ModelFiles;
use lehr_model::{Classifier, Model, Tokens};
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;

use super::{Loss, Objective, Scores, tokens_of};
use crate::Result;

/// Cross-entropy of the labels of texts. Decoders predict at the last token, encoders at the first.
pub struct Classify {
    classifier: Classifier,
    tokenizer: Tokenizer,
    files: Option<ModelFiles>,
}

impl Classify {
    /// Creates the objective for `classifier`.
    #[must_use]
    pub fn new(classifier: Classifier, tokenizer: Tokenizer) -> Self {
        Self { classifier, tokenizer, files: None }
    }

    /// Sets the files of the loaded model, whose settings checkpoints keep.
    #[must_use]
    pub fn with_files(self, files: Option<ModelFiles>) -> Self {
        Self { files, ..self }
    }

    /// Returns the classifier.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }
}

/// The input of the classifier.
struct Texts {
    tokens: Tokens,
    /// Flat index of the last token of each text, i32 `[n]`.
    ends: Tensor,
    /// The label of each text, i32 `[n]`.
    labels: Tensor,
}

impl Texts {
    fn of(batch: &Batch) -> Result<Self> {
        let n = [batch.sequences.len()];
        let label = |s: &Sequence| match *s.labels {
            [label] => Ok(label),
            ref labels => {
                let reason = format!("a text has {} labels, expected one", labels.len());
                Err(lehr_data::Error::Batch { reason })
            }
        };
        let labels: Vec<i32> =
            batch.sequences.iter().map(label).collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            tokens: tokens_of(batch)?,
            ends: Tensor::from_ids(&batch.sequence_ends(), n)?,
            labels: Tensor::from_ids(&labels, n)?,
        })
    }
}

impl Objective for Classify {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        let Texts { tokens, ends, labels } = Texts::of(batch)?;
        Ok(Loss::new(self.classifier.loss(&tokens, &ends, &labels, normalizer)?))
    }

    fn evaluate(&self, batch: &Batch) -> Result<Scores> {
        let Texts { tokens, ends, labels } = Texts::of(batch)?;
        let (loss, predicted) = self.classifier.score(&tokens, &ends, &labels)?;
        let right = |(p, l): &(&usize, &i32)| **p == **l as usize;
        let n_correct = predicted.iter().zip(labels.ids()).filter(right).count();
        Ok(Scores { n_correct: Some(n_correct), ..Scores::of(&Loss::new(loss))? })
    }

    fn model(&self) -> &Model {
        self.classifier.model()
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn files(&self) -> Option<&ModelFiles> {
        self.files.as_ref()
    }

    fn sample(&self, _: &str, _: usize, _: f32, _: u64) -> Result<Option<String>> {
        Ok(None)
    }

    fn config_json(&self) -> serde_json::Value {
        self.classifier.config_json()
    }
}
