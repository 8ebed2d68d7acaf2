//! Labels of a head in `config.json`, as `transformers` has them: the class of the model says what
//! they label, `id2label` names them.

use std::cell::RefCell;
use std::path::Path;

use lehr_tensor::{Shape, Source};
use serde_json::Value;

use crate::io::{self, BaseModel, ModelSource};
use crate::peft::PeftAdapter;
use crate::{Error, Model, Result, Weights};

/// Most labels without names.
const MAX_LABELS: usize = 1 << 20;

/// What a head labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Labelled {
    /// Whole sequences.
    Sequences,
    /// Each token.
    Tokens,
}

impl Labelled {
    /// Returns the end of the class names of such models in `transformers`.
    fn ending(self) -> &'static str {
        match self {
            Self::Sequences => "ForSequenceClassification",
            Self::Tokens => "ForTokenClassification",
        }
    }

    /// Returns whether `config.json` names a model with such a head.
    pub(crate) fn is(self, json: &Value) -> bool {
        class_of(json).is_some_and(|class| class.ends_with(self.ending()))
    }

    /// Returns whether the folder has a model with such a head.
    pub(crate) fn is_in(self, dir: &Path) -> bool {
        io::read_json(&dir.join("config.json")).is_ok_and(|json| self.is(&json))
    }

    /// Reads the labels of the model at `dir`.
    ///
    /// # Errors
    /// If it is a model of another kind.
    pub(crate) fn read(self, dir: &Path, json: &Value) -> Result<Vec<String>> {
        let (what, data) = match self {
            Self::Sequences => ("a classifier of texts", "labelled.jsonl"),
            Self::Tokens => ("a model that tags words", "train.conll"),
        };
        self.labels(json).ok_or_else(|| Error::Format {
            path: dir.join("config.json"),
            reason: match class_of(json).filter(|_| !self.is(json)) {
                Some(class) => format!("its class is {class}: this is not {what}"),
                None => format!("id2label is missing: this is not {what}"),
            },
            hint: Some(format!("make one: lehr finetune --model MODEL --data {data}")),
        })
    }

    fn labels(self, json: &Value) -> Option<Vec<String>> {
        if class_of(json).is_some() && !self.is(json) {
            return None;
        }
        let numbered = |n: usize| (0..n).map(|i| format!("LABEL_{i}")).collect();
        let Some(map) = json.get("id2label") else {
            // `transformers` omits the names of two unnamed labels.
            let n = json.get("num_labels").and_then(Value::as_u64).map_or(2, |n| n as usize);
            return self.is(json).then(|| numbered(n.min(MAX_LABELS)));
        };
        let map = map.as_object()?;
        (0..map.len()).map(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned())).collect()
    }

    /// Returns the `config.json` of `model` with a head for `labels`.
    pub(crate) fn config_json(self, model: &Model, labels: &[String]) -> Value {
        let mut json = model.config().to_json();
        let ids = labels.iter().enumerate();
        let id2label: Value =
            ids.clone().map(|(i, l)| (i.to_string(), Value::from(&**l))).collect();
        let label2id: Value = ids.map(|(i, l)| (l.clone(), Value::from(i))).collect();
        let class = model.config().class();
        let family = ["LMHeadModel", "ForCausalLM", "ForMaskedLM", "Model"]
            .iter()
            .find_map(|ending| class.strip_suffix(ending));
        let class = format!("{}{}", family.unwrap_or(class), self.ending());
        json["architectures"] = vec![class].into();
        json["id2label"] = id2label;
        json["label2id"] = label2id;
        json
    }
}

/// Returns the class that `config.json` names.
fn class_of(json: &Value) -> Option<&str> {
    json.get("architectures")?.get(0)?.as_str()
}

/// Opens the backbone in `dir`, including an adapter that a run trained, and builds a model with a
/// head from it. `build` receives the backbone and the source of the head's weights. `model`
/// returns the backbone inside the result.
///
/// # Errors
/// If a file is missing, damaged or does not fit the configuration.
pub(crate) fn open_with_head<T>(
    dir: &Path,
    build: impl FnOnce(Model, &Source<'_>) -> Result<T>,
    model: impl FnOnce(&mut T) -> &mut Model,
) -> Result<T> {
    // A run that trained an adapter has it, and the head, beside its base.
    let base = match PeftAdapter::is_in(dir) {
        true => BaseModel::checked(dir)?,
        false => None,
    };
    let adapter = base.is_some().then(|| PeftAdapter::open(dir)).transpose()?;
    let source = ModelSource::open(base.as_deref().unwrap_or(dir))?;
    let backbone = match &adapter {
        Some(adapter) => Model::backbone_with_adapter(&source, Weights::F32, adapter)?,
        None => Model::load_source(&source)?,
    };
    let used = RefCell::new(Vec::new());
    let load = |name: &str, shape: Shape| {
        used.borrow_mut().push(name.to_owned());
        let trained = adapter.as_ref().and_then(|adapter| adapter.whole(name, shape));
        if let Some(value) = trained {
            return value.map(Some).map_err(|e| e.to_string());
        }
        source.checkpoint().tensor(name, shape).map(Some).map_err(|e| e.to_string())
    };
    let load = Source::Load { load: &load, stored: None, seed: 0 };
    let mut built = build(backbone, &load).map_err(|e| source.checkpoint().explain(e))?;
    model(&mut built).use_also(&used.borrow());
    Ok(built)
}

/// Returns the index of the largest of each row of `n` logits.
pub(crate) fn most_likely(logits: &[f32], n: usize) -> Vec<usize> {
    let best = |row: &[f32]| {
        let by_value = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]);
        (0..row.len()).max_by(by_value).unwrap_or(0)
    };
    logits.chunks(n).map(best).collect()
}
