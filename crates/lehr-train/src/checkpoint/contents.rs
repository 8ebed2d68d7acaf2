//! The contents of a checkpoint.

use std::collections::BTreeSet;
use std::path::Path;

use lehr_model::io::{ADAPTER_CONFIG, BASE, BaseModel, Checkpoint, TensorFile};
use lehr_model::peft::ADAPTER_WEIGHTS;
use lehr_tensor::{Param, Tensor};

use super::{Writer, to_json};
use crate::average::LAST_WEIGHTS;
use crate::optim::Optimizer;
use crate::{Objective, Result, TrainState};

/// The file of the tensors of an objective's state.
pub(super) const OBJECTIVE_TENSORS: &str = "objective.safetensors";
/// The file of the other values of an objective's state.
pub(super) const OBJECTIVE_VALUES: &str = "objective.json";

/// The contents of a checkpoint.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The model, its tokenizer, and the objective's own state.
    pub objective: &'a dyn Objective,
    /// The moments.
    pub optimizer: &'a dyn Optimizer,
    /// The counters of the run.
    pub state: &'a TrainState,
    /// The model that supplies the frozen weights; `None` = all weights are saved.
    pub base: Option<&'a Base>,
    /// The weights with which training continues, if the model has averaged ones; otherwise empty.
    pub last_weights: &'a [(String, Tensor)],
}

/// The loaded model of a run, to which its checkpoints refer.
#[derive(Debug)]
pub struct Base {
    model: BaseModel,
    names: BTreeSet<String>,
}

impl Base {
    /// Creates a reference to the model in `path`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let names = Checkpoint::open(path)?.names().map(str::to_owned).collect();
        Ok(Self { model: BaseModel::of(path)?, names })
    }

    /// Returns whether the base supplies the value of this parameter.
    fn has(&self, param: &Param) -> bool {
        !param.is_trainable() && self.names.contains(param.name())
    }
}

impl Contents<'_> {
    /// Writes all files except the manifest.
    pub(super) fn write(&self, writer: &mut Writer<'_>) -> Result<()> {
        let Self { objective, optimizer, state, base, last_weights } = *self;
        self.write_texts(writer)?;
        self.write_weights(writer)?;
        if let Some(base) = base {
            writer.write_text(BASE, &to_json(&base.model))?;
        }
        let moments = TensorFile::new(optimizer.state(), &[])?;
        writer.write("optimizer.safetensors", &mut moments.parts())?;
        if !last_weights.is_empty() {
            let last = TensorFile::new(last_weights.to_vec(), &[])?;
            writer.write(LAST_WEIGHTS, &mut last.parts())?;
        }
        if let Some(own) = objective.state()? {
            let tensors = TensorFile::new(own.tensors, &[])?;
            writer.write(OBJECTIVE_TENSORS, &mut tensors.parts())?;
            writer.write_text(OBJECTIVE_VALUES, &to_json(&own.values))?;
        }
        writer.write_text("state.json", &to_json(state))
    }

    /// Writes the trained weights: the adapter in the format of PEFT, or the model's.
    fn write_weights(&self, writer: &mut Writer<'_>) -> Result<()> {
        let model = self.objective.model();
        let Some(base) = self.base.filter(|_| !model.adapters().is_empty()) else {
            return writer.write("model.safetensors", &mut self.weights()?.parts());
        };
        let config = self.objective.config_json();
        let class = config["architectures"][0].as_str().unwrap_or_default();
        let path = base.model.path.display().to_string();
        let (settings, file) = model.adapter_files(&path, class)?;
        writer.write(ADAPTER_WEIGHTS, &mut file.parts())?;
        writer.write_text(ADAPTER_CONFIG, &to_json(&settings))
    }

    /// Writes the texts with which lehr and `transformers` open the model. Settings of the loaded
    /// model that the run did not change stay.
    fn write_texts(&self, writer: &mut Writer<'_>) -> Result<()> {
        let (objective, tokenizer) = (self.objective, self.objective.tokenizer());
        let own = objective.config_json();
        let files = objective.files().cloned().unwrap_or_default();
        writer.write_text("config.json", &files.config(&own, tokenizer)?)?;
        writer.write_text("tokenizer.json", &tokenizer.to_json())?;
        let generates = objective.model().is_causal() && own.get("id2label").is_none();
        for (name, text) in files.others(tokenizer, objective.template(), generates)? {
            writer.write_text(name, &text)?;
        }
        Ok(())
    }

    /// Collects the weights that the base does not supply.
    fn weights(&self) -> Result<TensorFile> {
        let Some(base) = self.base else { return self.objective.weights() };
        let own = |param: &&Param| !base.has(param);
        let named =
            |p: &Param| -> (String, Tensor) { (p.name().to_owned(), p.tensor_f32().detach()) };
        let params = self.objective.model().params().params();
        let own = params.iter().filter(own).map(named).collect();
        Ok(TensorFile::new(own, &[("format", "pt")])?)
    }
}
