//! Sequence classification on any backbone.

use std::path::Path;

use lehr_tensor::ops::linear::WeightLayout;
use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{ParamBuilder, Shape, Source, Tensor, no_grad};
use serde_json::Value;

use crate::io::{self, Checkpoint};
use crate::nn::Linear;
use crate::{Config, Error, Model, Result, Tokens};

/// A backbone and a linear head over the hidden state of each sequence's last token, as in
/// `transformers`' `…ForSequenceClassification`.
pub struct Classifier {
    model: Model,
    score: Linear,
    labels: Vec<String>,
}

impl Classifier {
    /// Puts a new head for `labels` on `model`.
    ///
    /// # Errors
    /// If there are fewer than two labels or memory runs out.
    pub fn new(model: Model, labels: Vec<String>, seed: u64) -> Result<Self> {
        Self::with_source(model, labels, &Source::Init { seed })
    }

    fn with_source(mut model: Model, labels: Vec<String>, source: &Source<'_>) -> Result<Self> {
        if labels.len() < 2 {
            return Err(Error::config("labels", labels.len(), "at least two labels"));
        }
        let size = (model.spec().hidden_size, labels.len());
        let mut p = ParamBuilder::new(model.params_mut(), source);
        let score = Linear::build(&mut p.at("score"), WeightLayout::OutIn, size, false, 0.02)?;
        Ok(Self { model, score, labels })
    }

    /// Loads a folder written by [`Classifier::save`] or by `transformers`.
    ///
    /// # Errors
    /// If a file is missing, damaged or does not fit the configuration.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let json = io::read_json(&path)?;
        let labels = labels_of(&json).ok_or_else(|| Error::Format {
            path,
            reason: "id2label is missing: this is not a classifier".to_owned(),
            hint: Some("make one: lehr finetune --model MODEL --data labelled.jsonl".to_owned()),
        })?;
        let checkpoint = Checkpoint::open(dir)?;
        let model = Model::from_checkpoint(Config::from_json(&json)?, &checkpoint)?;
        let load = |name: &str, shape: Shape| {
            checkpoint.tensor(name, shape).map(Some).map_err(|e| e.to_string())
        };
        Self::with_source(model, labels, &Source::Load { load: &load, seed: 0 })
    }

    /// Whether the folder's `config.json` names labels.
    #[must_use]
    pub fn is_classifier(dir: &Path) -> bool {
        io::read_json(&dir.join("config.json")).is_ok_and(|json| {
            let classes = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
            classes.is_some_and(|c| c.ends_with("ForSequenceClassification"))
        })
    }

    /// The backbone with all parameters, the head's included.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The labels, in the order of the logits.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Logits `[n, n_labels]` of the sequences that end at the flat positions `ends` (i32 `[n]`)
    /// of the token rows.
    ///
    /// # Errors
    /// If a position is outside of the rows or memory runs out.
    pub fn logits(&self, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
        Ok(self.score.forward(&self.pooled(tokens, ends)?)?)
    }

    fn pooled(&self, tokens: &Tokens, ends: &Tensor) -> Result<Tensor> {
        let hidden = self.model.hidden(tokens)?;
        let rows = [hidden.shape().n_rows(), hidden.shape().last_dim()];
        Ok(hidden.reshape(rows)?.gather_rows(ends)?)
    }

    /// The cross-entropy of the labels (i32 `[n]`), summed and divided by `normalizer`.
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
        let options = CrossEntropy { normalizer, z_loss: 0.0, softcap: None };
        let pooled = self.pooled(tokens, ends)?;
        Ok(pooled.linear_cross_entropy(&self.score.weight(), labels, options)?)
    }

    /// The most likely label of each sequence.
    ///
    /// # Errors
    /// As [`Classifier::logits`].
    pub fn predict(&self, tokens: &Tokens, ends: &Tensor) -> Result<Vec<usize>> {
        let logits = no_grad(|| self.logits(tokens, ends))?;
        let best = |row: &[f32]| {
            let by_value = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]);
            (0..row.len()).max_by(by_value).unwrap_or(0)
        };
        Ok(logits.data().chunks(self.labels.len()).map(best).collect())
    }

    /// The `config.json`: the backbone's, with the labels.
    #[must_use]
    pub fn config_json(&self) -> Value {
        let mut json = self.model.config().to_json();
        let class = match self.model.config() {
            Config::Gpt2(_) => "GPT2ForSequenceClassification",
            Config::Llama(_) => "LlamaForSequenceClassification",
        };
        let ids = self.labels.iter().enumerate();
        let id2label: Value =
            ids.clone().map(|(i, l)| (i.to_string(), Value::from(&**l))).collect();
        let label2id: Value = ids.map(|(i, l)| (l.clone(), Value::from(i))).collect();
        json["architectures"] = vec![class].into();
        json["id2label"] = id2label;
        json["label2id"] = label2id;
        json
    }

    /// Writes `config.json` and `model.safetensors` into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        io::write_json(&dir.join("config.json"), &self.config_json())?;
        let file = io::TensorFile::of_params(self.model.params());
        io::write_parts(&dir.join("model.safetensors"), file.parts())
    }
}

fn labels_of(json: &Value) -> Option<Vec<String>> {
    let map = json.get("id2label")?.as_object()?;
    (0..map.len()).map(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned())).collect()
}
