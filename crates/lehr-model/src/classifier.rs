//! Sequence classification on any backbone.

use std::path::Path;

use lehr_tensor::ops::linear_cross_entropy::CrossEntropy;
use lehr_tensor::{Role, Shape, Source, Tensor, no_grad};
use serde_json::Value;

use crate::io::{self, Checkpoint};
use crate::nn::{LayerBuilder, Linear, LinearShape};
use crate::{Config, Error, Model, Result, Tokens};

/// A backbone with a head that gives each sequence one logit per label, as in `transformers`'
/// `…ForSequenceClassification`.
pub struct Classifier {
    model: Model,
    head: Head,
    labels: Vec<String>,
}

/// The pooling and projection from hidden states to labels.
enum Head {
    /// `score(h)` at the last token, which has attended to the whole sequence.
    Last { score: Linear },
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
            return Ok(Self::Last { score });
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
            Self::Last { score } => score,
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
        Self::with_source(model, labels, &Source::Init { seed })
    }

    fn with_source(mut model: Model, labels: Vec<String>, source: &Source<'_>) -> Result<Self> {
        if labels.len() < 2 {
            return Err(Error::config("labels", labels.len(), "at least two labels"));
        }
        let head = Head::build(&mut model, labels.len(), source)?;
        Ok(Self { model, head, labels })
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
        Self::with_source(model, labels, &Source::Load { load: &load, stored: None, seed: 0 })
    }

    /// Loads the backbone of a classifier without its head, for a new one.
    ///
    /// # Errors
    /// As [`Classifier::load`].
    pub fn load_backbone(dir: &Path) -> Result<Model> {
        let json = io::read_json(&dir.join("config.json"))?;
        Model::from_checkpoint(Config::from_json(&json)?, &Checkpoint::open(dir)?)
    }

    /// Returns whether the folder's `config.json` names a classifier.
    #[must_use]
    pub fn is_classifier(dir: &Path) -> bool {
        io::read_json(&dir.join("config.json")).is_ok_and(|json| is_classifier(&json))
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
            Head::Last { .. } => Ok(hidden.gather_rows(ends)?),
            Head::First { pooler, .. } => {
                let first = hidden.gather_rows(&first_tokens(tokens, ends)?)?;
                Ok(pooler.forward(&first)?.tanh()?)
            }
        }
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
        let best = |row: &[f32]| {
            let by_value = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]);
            (0..row.len()).max_by(by_value).unwrap_or(0)
        };
        Ok(logits.to_host()?.data().chunks(self.labels.len()).map(best).collect())
    }

    /// Returns the `config.json` of the backbone, extended by the labels.
    #[must_use]
    pub fn config_json(&self) -> Value {
        let mut json = self.model.config().to_json();
        let class = classifier_class(self.model.config().class());
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

/// Returns the classifier class in `transformers` for a language-model class.
fn classifier_class(class: &str) -> String {
    let family = ["LMHeadModel", "ForCausalLM", "ForMaskedLM", "Model"]
        .iter()
        .find_map(|ending| class.strip_suffix(ending));
    format!("{}ForSequenceClassification", family.unwrap_or(class))
}

fn is_classifier(json: &Value) -> bool {
    let class = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    class.is_some_and(|c| c.ends_with("ForSequenceClassification"))
}

fn labels_of(json: &Value) -> Option<Vec<String>> {
    let Some(map) = json.get("id2label") else {
        // `transformers` omits the names of two unnamed labels.
        return is_classifier(json).then(|| vec!["LABEL_0".to_owned(), "LABEL_1".to_owned()]);
    };
    let map = map.as_object()?;
    (0..map.len()).map(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned())).collect()
}
