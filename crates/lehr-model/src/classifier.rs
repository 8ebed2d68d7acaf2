//! Sequence classification on any backbone.

use std::path::Path;

use lehr_tensor::ops::linear::WeightLayout;
use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{Role, Source, Tensor, no_grad};
use serde_json::Value;

use crate::io;
use crate::labels::{Labelled, most_likely, open_with_head};
use crate::nn::{LayerBuilder, Linear, LinearShape};
use crate::{Error, Model, Result, Tokens};

/// A backbone with a head that gives each sequence one logit per label, as in `transformers`'
/// `…ForSequenceClassification`.
pub struct Classifier {
    model: Model,
    head: Head,
    labels: Vec<String>,
    pooling: Pooling,
}

/// The hidden states by which a decoder classifies a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    /// That of the end-of-document token, which texts get. It has attended to the whole text.
    EndOfDocument,
    /// The mean of all, the end-of-document token's included.
    Mean,
    /// That of the last token of the text that is not this padding, as `transformers` has it.
    BeforePadding(Option<i32>),
}

/// The key of `config.json` that says by which hidden states a decoder classifies.
const POOLING: &str = "classifier_pooling";
/// Its value for [`Pooling::EndOfDocument`].
const END_OF_DOCUMENT: &str = "end_of_document";
/// Its value for [`Pooling::Mean`].
const MEAN: &str = "mean";

impl Pooling {
    fn of(json: &Value) -> Self {
        match json.get(POOLING).and_then(Value::as_str) {
            Some(END_OF_DOCUMENT) => return Self::EndOfDocument,
            Some(MEAN) => return Self::Mean,
            _ => {}
        }
        let pad = json.get("pad_token_id").and_then(Value::as_i64);
        Self::BeforePadding(pad.and_then(|id| i32::try_from(id).ok()))
    }
}

/// The pooling and projection from hidden states to labels.
enum Head {
    /// `score(h)` of a decoder's pooled hidden states.
    Decoder { score: Linear },
    /// `classifier(tanh(pooler(h)))` at an encoder's first token.
    First { pooler: Linear, classifier: Linear },
}

impl Head {
    fn build(model: &mut Model, n_labels: usize, source: &Source<'_>) -> Result<Self> {
        const STD: f32 = 0.02;
        let (is_causal, d) = (model.is_causal(), model.spec().hidden_size);
        let known = model.pooler().cloned();
        let mut p = LayerBuilder::new(model.params_mut(), source);
        let shape = LinearShape::new(d, n_labels);
        if is_causal {
            let score = Linear::build(&mut p.at("score"), Role::Head, shape, STD)?;
            return Ok(Self::Decoder { score });
        }
        let pooler = match known {
            Some(pooler) => pooler,
            None => {
                let mut p = p.at("bert");
                let mut p = p.at("pooler");
                let square = LinearShape::new(d, d).with_bias(true);
                Linear::build(&mut p.at("dense"), Role::Transform, square, STD)?
            }
        };
        let shape = shape.with_bias(true);
        let classifier = Linear::build(&mut p.at("classifier"), Role::Head, shape, STD)?;
        Ok(Self::First { pooler, classifier })
    }

    /// Returns the layer that produces the logits.
    fn output(&self) -> &Linear {
        match self {
            Self::Decoder { score } => score,
            Self::First { classifier, .. } => classifier,
        }
    }
}

impl Classifier {
    /// Adds a new head for `labels` to `model`.
    ///
    /// # Errors
    /// If there are fewer than two labels or memory runs out.
    pub fn new(model: Model, labels: Vec<String>, seed: u64) -> Result<Self> {
        Self::with_source(model, labels, Pooling::EndOfDocument, &Source::Init { seed })
    }

    /// Adds a new head, as [`Classifier::new`], that classifies by the mean of a text's hidden
    /// states: `score(Σ h / T)`. With few labels it learns faster than at the last token.
    ///
    /// # Errors
    /// If the model is an encoder, which classifies at its first token, and as
    /// [`Classifier::new`].
    pub fn new_by_mean(model: Model, labels: Vec<String>, seed: u64) -> Result<Self> {
        if !model.is_causal() {
            let expected = "a decoder's: an encoder classifies at its first token";
            return Err(Error::config("pooling", MEAN, expected));
        }
        Self::with_source(model, labels, Pooling::Mean, &Source::Init { seed })
    }

    fn with_source(
        mut model: Model,
        labels: Vec<String>,
        pooling: Pooling,
        source: &Source<'_>,
    ) -> Result<Self> {
        if labels.len() < 2 {
            return Err(Error::config("labels", labels.len(), "at least two labels"));
        }
        let head = Head::build(&mut model, labels.len(), source)?;
        Ok(Self { model, head, labels, pooling })
    }

    /// Loads a folder written by [`Classifier::save`] or by `transformers`.
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(dir: &Path) -> Result<Self> {
        let json = io::read_json(&dir.join("config.json"))?;
        let labels = Labelled::Sequences.read(dir, &json)?;
        check_problem(&json)?;
        let pooling = Pooling::of(&json);
        let build = |model, source: &Source<'_>| Self::with_source(model, labels, pooling, source);
        let mut classifier = open_with_head(dir, build, Self::model_mut)?;
        let known = [END_OF_DOCUMENT, MEAN, "cls"];
        if json.get(POOLING).is_some_and(|p| known.iter().all(|known| p != known)) {
            let unread = format!("{POOLING} = {} of config.json is not read", json[POOLING]);
            classifier.model.warn(unread);
        }
        Ok(classifier)
    }

    /// Names the hidden states that classify a text: `end_of_document` or `mean`, the values of
    /// `classifier_pooling` in `config.json`; `last`, the last token, for decoders of
    /// `transformers`; `cls`, the first token, for encoders.
    #[must_use]
    pub fn pooling(&self) -> &'static str {
        match (&self.head, self.pooling) {
            (Head::First { .. }, _) => "cls",
            (Head::Decoder { .. }, Pooling::EndOfDocument) => END_OF_DOCUMENT,
            (Head::Decoder { .. }, Pooling::Mean) => MEAN,
            (Head::Decoder { .. }, Pooling::BeforePadding(_)) => "last",
        }
    }

    /// Returns whether a text gets an end-of-document token. In classifiers of other programs it
    /// does not.
    #[must_use]
    pub fn ends_texts(&self) -> bool {
        !matches!(self.pooling, Pooling::BeforePadding(_))
    }

    /// Returns whether the folder's `config.json` names a classifier.
    #[must_use]
    pub fn is_classifier(dir: &Path) -> bool {
        Labelled::Sequences.is_in(dir)
    }

    /// Returns the model: backbone and head.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the model mutably, to configure training.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Returns the labels, in the order of the logits.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Computes logits `[n, n_labels]` of the sequences that end at the flat positions `ends` (i32
    /// `[n]`) of the token rows. A row without segments is one sequence, possibly with padding
    /// after it. An encoder would attend to that padding, so its padding must be separate segments.
    ///
    /// # Errors
    /// If a position is outside the rows or memory runs out.
    pub fn logits(&self, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
        Ok(self.head.output().forward(&self.pooled(tokens, ends)?)?)
    }

    /// Computes the input `[n, D]` of the last layer.
    fn pooled(&self, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
        let hidden = self.model.hidden(tokens)?;
        let rows = [hidden.shape().n_rows(), hidden.shape().last_dim()];
        let hidden = hidden.reshape(rows)?;
        match &self.head {
            Head::Decoder { .. } => match self.pooling {
                Pooling::Mean => means(&hidden, tokens, ends),
                _ => Ok(hidden.gather_rows(&self.last_tokens(tokens, ends)?)?),
            },
            Head::First { pooler, .. } => {
                let first = hidden.gather_rows(&first_tokens(tokens, ends)?)?;
                Ok(pooler.forward(&first)?.tanh()?)
            }
        }
    }

    /// Computes the flat positions at which a decoder classifies the sequences that end at `ends`.
    fn last_tokens(&self, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
        let Pooling::BeforePadding(Some(pad)) = self.pooling else { return Ok(ends.clone()) };
        let (starts, ids) = (first_tokens(tokens, ends)?, tokens.ids.ids());
        let last = |(&start, &end): (&i32, &i32)| {
            let is_text = |at: &i32| ids.get(*at as usize).is_none_or(|id| *id != pad);
            // A text of padding alone is classified at its first token.
            (start..=end).rev().find(is_text).unwrap_or(start)
        };
        let last: Vec<i32> = starts.ids().iter().zip(ends.ids()).map(last).collect();
        Ok(Tensor::from_ids(&last, ends.shape())?)
    }

    /// Computes the cross-entropy of the labels (i32 `[n]`), summed and divided by `normalizer`.
    ///
    /// # Errors
    /// If a label is out of range or memory runs out.
    pub fn loss(
        &self,
        tokens: &Tokens,
        ends: &Tensor,
        labels: &Tensor,
        normalizer: f32,
    ) -> Result<Tensor> {
        self.loss_of(&self.pooled(tokens, ends)?, labels, normalizer)
    }

    fn loss_of(&self, pooled: &Tensor, labels: &Tensor, normalizer: f32) -> Result<Tensor> {
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap: None };
        Ok(self.head.output().cross_entropy(pooled, labels, options)?)
    }

    /// Computes the summed cross-entropy of the labels (i32 `[n]`) and the most likely label of
    /// each sequence in one unrecorded pass.
    ///
    /// # Errors
    /// As [`Classifier::loss`].
    pub fn score(
        &self,
        tokens: &Tokens,
        ends: &Tensor,
        labels: &Tensor,
    ) -> Result<(Tensor, Vec<usize>)> {
        no_grad(|| {
            let pooled = self.pooled(tokens, ends)?;
            let loss = self.loss_of(&pooled, labels, 1.0)?;
            Ok((loss, self.most_likely(&self.head.output().forward(&pooled)?)?))
        })
    }

    /// Predicts the most likely label of each sequence.
    ///
    /// # Errors
    /// As [`Classifier::logits`].
    pub fn predict(&self, tokens: &Tokens, ends: &Tensor) -> Result<Vec<usize>> {
        self.most_likely(&no_grad(|| self.logits(tokens, ends))?)
    }

    fn most_likely(&self, logits: &Tensor) -> Result<Vec<usize>> {
        Ok(most_likely(logits.to_host()?.data(), self.labels.len()))
    }

    /// Returns the `config.json` of the backbone, extended by the labels.
    #[must_use]
    pub fn config_json(&self) -> Value {
        let mut json = Labelled::Sequences.config_json(&self.model, &self.labels);
        match self.pooling {
            Pooling::EndOfDocument => json[POOLING] = END_OF_DOCUMENT.into(),
            Pooling::Mean => json[POOLING] = MEAN.into(),
            Pooling::BeforePadding(Some(pad)) => json["pad_token_id"] = pad.into(),
            Pooling::BeforePadding(None) => {}
        }
        json
    }

    /// Writes `config.json` and `model.safetensors` into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.model.check_plain("writing the classifier")?;
        std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        io::write_json(&dir.join("config.json"), &self.config_json())?;
        let file = io::TensorFile::of_params(self.model.params())?;
        io::write_parts(&dir.join("model.safetensors"), file.parts())
    }
}

/// Computes the flat positions of the first tokens of the sequences that end at `ends`.
fn first_tokens(tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
    let (n, t) = (tokens.batch() * tokens.len(), tokens.len());
    let start = |&end: &i32| match usize::try_from(end) {
        Ok(end) if end < n => {
            let within = tokens.segment_starts.as_ref().map_or(0, |starts| starts.ids()[end]);
            (end - end % t) as i32 + within
        }
        // The gather that follows rejects the position and names it.
        _ => end,
    };
    let starts: Vec<i32> = ends.ids().iter().map(start).collect();
    Ok(Tensor::from_ids(&starts, ends.shape())?)
}

/// Computes the mean `[n, D]` of the hidden states `[N, D]` of each sequence that ends at `ends`:
/// `P H`, where the row of a sequence in `P [n, N]` is `1 / T` at its `T` positions and 0
/// elsewhere.
fn means(hidden: &Tensor, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
    let n_tokens = hidden.shape().n_rows();
    let starts = first_tokens(tokens, ends)?;
    let mut shares = vec![0.0; ends.ids().len() * n_tokens];
    let sequences = starts.ids().iter().zip(ends.ids());
    for (row, (&start, &end)) in shares.chunks_exact_mut(n_tokens).zip(sequences) {
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let Some(row) = range.and_then(|(start, end)| row.get_mut(start..=end)) else {
            return Err(Error::config("ends", end, format!("a position below {n_tokens}")));
        };
        let share = 1.0 / row.len() as f32;
        row.fill(share);
    }
    let shares = Tensor::from_slice(&shares, [ends.ids().len(), n_tokens])?;
    let shares = shares.to_device(hidden.device())?.cast(hidden.dtype())?;
    Ok(shares.linear(hidden, WeightLayout::InOut, None)?)
}

/// Checks that the head chooses one of several labels.
fn check_problem(json: &Value) -> Result<()> {
    let single = "single_label_classification";
    match json.get("problem_type").and_then(Value::as_str) {
        Some(other) if other != single => {
            let expected = format!("{single}: lehr computes one choice among the labels");
            Err(Error::config("problem_type", other, expected))
        }
        _ => Ok(()),
    }
}
