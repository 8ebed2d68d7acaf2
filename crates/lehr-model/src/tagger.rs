//! Token classification on any backbone: one label for each word.

use std::path::Path;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{Role, Source, Tensor, no_grad};
use serde_json::Value;

use crate::io;
use crate::labels::{Labelled, most_likely, open_with_head};
use crate::nn::{LayerBuilder, Linear, LinearShape};
use crate::{Error, Model, Result, Tokens};

/// A backbone with a head that gives a token one logit per label, `h W^T + b`, as in
/// `transformers`' `…ForTokenClassification`.
pub struct Tagger {
    model: Model,
    head: Linear,
    labels: Vec<String>,
    tags_last_token: bool,
}

/// The key of `config.json` that says at which token a word is tagged.
const TAGGED_TOKEN: &str = "tagged_token";
/// Its value for the last one. Without the key it is the first, as in `transformers`' examples.
const LAST: &str = "last";

impl Tagger {
    /// Adds a new head for `labels` to `model`.
    ///
    /// # Errors
    /// If there are fewer than two labels or memory runs out.
    pub fn new(model: Model, labels: Vec<String>, seed: u64) -> Result<Self> {
        // A decoder has read the whole word at its last token.
        let tags_last_token = model.is_causal();
        Self::with_source(model, labels, tags_last_token, &Source::Init { seed })
    }

    fn with_source(
        mut model: Model,
        labels: Vec<String>,
        tags_last_token: bool,
        source: &Source<'_>,
    ) -> Result<Self> {
        const STD: f32 = 0.02;
        if labels.len() < 2 {
            return Err(Error::config("labels", labels.len(), "at least two labels"));
        }
        // The names that `transformers` has.
        let name = match model.config().class() {
            class if class.starts_with("Bert") || class.starts_with("GPT2") => "classifier",
            _ => "score",
        };
        let shape = LinearShape::new(model.spec().hidden_size, labels.len()).with_bias(true);
        let mut p = LayerBuilder::new(model.params_mut(), source);
        let head = Linear::build(&mut p.at(name), Role::Head, shape, STD)?;
        Ok(Self { model, head, labels, tags_last_token })
    }

    /// Loads a folder written by [`Tagger::save`] or by `transformers`.
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(dir: &Path) -> Result<Self> {
        let json = io::read_json(&dir.join("config.json"))?;
        let labels = Labelled::Tokens.read(dir, &json)?;
        let is_last = match json.get(TAGGED_TOKEN) {
            None => false,
            Some(token) if token == LAST => true,
            Some(other) => {
                return Err(Error::config(TAGGED_TOKEN, other, "\"last\" or no such key"));
            }
        };
        let build = |model, source: &Source<'_>| Self::with_source(model, labels, is_last, source);
        open_with_head(dir, build, Self::model_mut)
    }

    /// Returns whether the folder's `config.json` names a model that tags tokens.
    #[must_use]
    pub fn is_tagger(dir: &Path) -> bool {
        Labelled::Tokens.is_in(dir)
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

    /// Returns whether a word is tagged at its last token, instead of its first.
    #[must_use]
    pub fn tags_last_token(&self) -> bool {
        self.tags_last_token
    }

    /// Returns the labels, in the order of the logits.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Computes logits `[n, n_labels]` at the flat positions `places` (i32 `[n]`) of the token
    /// rows.
    ///
    /// # Errors
    /// If a position is outside the rows or memory runs out.
    pub fn logits(&self, tokens: &Tokens, places: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(&self.hidden(tokens, places)?)?)
    }

    /// Computes the hidden states `[n, D]` at `places`.
    fn hidden(&self, tokens: &Tokens, places: &Tensor) -> Result<Tensor> {
        let hidden = self.model.hidden(tokens)?;
        let rows = [hidden.shape().n_rows(), hidden.shape().last_dim()];
        Ok(hidden.reshape(rows)?.gather_rows(places)?)
    }

    /// Computes the cross-entropy of the labels (i32 `[n]`) at `places`, summed and divided by
    /// `normalizer`.
    ///
    /// # Errors
    /// If a label is out of range or memory runs out.
    pub fn loss(
        &self,
        tokens: &Tokens,
        places: &Tensor,
        labels: &Tensor,
        normalizer: f32,
    ) -> Result<Tensor> {
        self.loss_of(&self.hidden(tokens, places)?, labels, normalizer)
    }

    fn loss_of(&self, hidden: &Tensor, labels: &Tensor, normalizer: f32) -> Result<Tensor> {
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap: None };
        Ok(self.head.cross_entropy(hidden, labels, options)?)
    }

    /// Computes the summed cross-entropy of the labels (i32 `[n]`) and the most likely label at
    /// each place in one unrecorded pass.
    ///
    /// # Errors
    /// As [`Tagger::loss`].
    pub fn score(
        &self,
        tokens: &Tokens,
        places: &Tensor,
        labels: &Tensor,
    ) -> Result<(Tensor, Vec<usize>)> {
        no_grad(|| {
            let hidden = self.hidden(tokens, places)?;
            let loss = self.loss_of(&hidden, labels, 1.0)?;
            let logits = self.head.forward(&hidden)?.to_host()?;
            Ok((loss, most_likely(logits.data(), self.labels.len())))
        })
    }

    /// Returns the `config.json` of the backbone, extended by the labels.
    #[must_use]
    pub fn config_json(&self) -> Value {
        let mut json = Labelled::Tokens.config_json(&self.model, &self.labels);
        if self.tags_last_token {
            json[TAGGED_TOKEN] = LAST.into();
        }
        json
    }

    /// Writes `config.json` and `model.safetensors` into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.model.check_plain("writing the model")?;
        std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        io::write_json(&dir.join("config.json"), &self.config_json())?;
        let file = io::TensorFile::of_params(self.model.params())?;
        io::write_parts(&dir.join("model.safetensors"), file.parts())
    }
}
