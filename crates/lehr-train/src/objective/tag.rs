//! Token classification: named entities.

use lehr_data::Batch;
use lehr_data::entities::{Entity, SpanMode, TagSet};
use lehr_eval::metrics::EntityCounts;
use lehr_infer::ModelFiles;
use lehr_model::{Model, Tagger, Tokens};
use lehr_tensor::Tensor;
use lehr_tokenizer::Tokenizer;

use super::{Loss, Objective, Scores, tokens_of};
use crate::Result;

/// Cross-entropy of the tags of words, each at one of its tokens.
pub struct Tag {
    tagger: Tagger,
    tags: TagSet,
    tokenizer: Tokenizer,
    files: Option<ModelFiles>,
}

impl Tag {
    /// Creates the objective for `tagger`, whose labels are `tags`.
    #[must_use]
    pub fn new(tagger: Tagger, tags: TagSet, tokenizer: Tokenizer) -> Self {
        Self { tagger, tags, tokenizer, files: None }
    }

    /// Sets the files of the loaded model, whose settings checkpoints keep.
    #[must_use]
    pub fn with_files(self, files: Option<ModelFiles>) -> Self {
        Self { files, ..self }
    }

    /// Counts found and expected entities of each segment of a batch, whose words have the
    /// `predicted` classes.
    fn entities(&self, batch: &Batch, places: &[i32], predicted: &[usize]) -> EntityCounts {
        let mut counts = EntityCounts::default();
        let words: Vec<_> = places.iter().map(|at| *at as usize).zip(predicted).collect();
        let segment = |at: usize| (at / batch.seq_len, batch.segment_starts[at]);
        for words in words.chunk_by(|(a, _), (b, _)| segment(*a) == segment(*b)) {
            let found: Vec<usize> = words.iter().map(|(_, class)| **class).collect();
            let expected: Vec<usize> =
                words.iter().map(|(at, _)| batch.targets[*at] as usize).collect();
            let [found, expected] =
                [found, expected].map(|classes| self.tags.entities(&classes, SpanMode::Lenient));
            counts.add(keys(&found), keys(&expected));
        }
        counts
    }
}

/// Returns words and type of each entity.
fn keys(entities: &[Entity]) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
    entities.iter().map(|entity| (entity.words.clone(), entity.label.as_str()))
}

/// The input of the model.
struct Words {
    tokens: Tokens,
    /// Flat positions of the words, i32 `[n]`.
    places: Tensor,
    /// Their classes, i32 `[n]`.
    classes: Tensor,
}

impl Words {
    fn of(batch: &Batch) -> Result<Self> {
        let is_word = |(_, target): &(i32, i32)| *target != Batch::IGNORE;
        let (places, classes): (Vec<_>, Vec<_>) =
            (0..).zip(batch.targets.iter().copied()).filter(is_word).unzip();
        let n = [places.len()];
        Ok(Self {
            tokens: tokens_of(batch)?,
            places: Tensor::from_ids(&places, n)?,
            classes: Tensor::from_ids(&classes, n)?,
        })
    }
}

impl Objective for Tag {
    fn loss(&self, batch: &Batch, normalizer: f32) -> Result<Loss> {
        let Words { tokens, places, classes } = Words::of(batch)?;
        Ok(Loss::new(self.tagger.loss(&tokens, &places, &classes, normalizer)?))
    }

    fn evaluate(&self, batch: &Batch) -> Result<Scores> {
        let Words { tokens, places, classes } = Words::of(batch)?;
        let (loss, predicted) = self.tagger.score(&tokens, &places, &classes)?;
        let right = |(p, c): &(&usize, &i32)| **p == **c as usize;
        let n_correct = predicted.iter().zip(classes.ids()).filter(right).count();
        let entities = Some(self.entities(batch, places.ids(), &predicted));
        Ok(Scores { n_correct: Some(n_correct), entities, ..Scores::of(&Loss::new(loss))? })
    }

    fn model(&self) -> &Model {
        self.tagger.model()
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
        self.tagger.config_json()
    }
}
