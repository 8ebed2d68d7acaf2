//! Writes the adapters of a model, and reads those of a checkpoint into it.

use std::collections::BTreeSet;
use std::path::Path;

use lehr_tensor::{Param, Role};
use serde_json::{Map, Value, json};

use super::{ADAPTER_WEIGHTS, OPENING, PREFIX, PeftAdapter};
use crate::adapt::{AdapterMethod, LoraConfig, LoraScaling, SavedAdapters};
use crate::io::{self, ADAPTER_CONFIG, TensorFile};
use crate::{Error, Model, Result};

impl Model {
    /// Writes the adapters into the folder `dir` in the format of PEFT. `base` is how the base is
    /// named: a folder, or a name in a registry of models.
    ///
    /// # Errors
    /// If the model has no adapters or a file cannot be written.
    pub fn save_adapter(&self, dir: &Path, base: &str) -> Result<()> {
        let (settings, file) = self.adapter_files(base, self.config().class())?;
        std::fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        io::write_parts(&dir.join(ADAPTER_WEIGHTS), file.parts())?;
        io::write_json(&dir.join(ADAPTER_CONFIG), &settings)
    }

    /// Gives the adapters the values of a saved one.
    ///
    /// # Errors
    /// If it has other layers or shapes, or cannot be read.
    pub fn load_adapter(&self, saved: &PeftAdapter) -> Result<()> {
        let mut used = BTreeSet::new();
        for adapted in self.adapters() {
            let names = self.config().checkpoint_names(&format!("{}.weight", adapted.path));
            let Some((layer, _)) = saved.find(&names) else {
                let found = format!("the adapter lacks the layer {}", adapted.path);
                return Err(Error::adapter(OPENING, found, "use the adapter of this run"));
            };
            for part in adapted.method.parts() {
                let param = self.adapter_param(&adapted.path, part);
                param.set(&saved.tensor(layer, part, param.shape())?)?;
            }
            used.insert(layer.to_owned());
        }
        for param in self.whole_layers() {
            let found = format!("the adapter lacks {}", param.name());
            let missing = || Error::adapter(OPENING, found, "use the adapter of this run");
            param.set(&saved.whole(param.name(), param.shape()).ok_or_else(missing)??)?;
        }
        saved.check_used(&used)
    }

    /// Returns the parameters that are trained beside the adapters: those of a new head.
    fn whole_layers(&self) -> impl Iterator<Item = &Param> {
        self.params().trainable().filter(|param| param.role() != Role::Adapter)
    }

    fn adapter_param(&self, path: &str, part: &str) -> &Param {
        let param = self.params().get(&format!("{path}.{part}"));
        param.expect("the adapter's parameters are the model's")
    }

    /// Returns the settings and the tensors of the adapters in the format of PEFT. `class` is the
    /// class in `transformers` of the model with its head.
    ///
    /// # Errors
    /// If the model has no adapters, or one cannot be copied from its device.
    pub fn adapter_files(&self, base: &str, class: &str) -> Result<(Value, TensorFile)> {
        let Some(method) = self.adapter_method() else {
            let hint = "open the model with an adapter, or save the whole model";
            return Err(Error::adapter("saving the adapter", "the model has none", hint));
        };
        let LoraConfig { rank, alpha, scaling } = method.low_rank();
        let (mut tensors, mut ranks, mut alphas) = (Vec::new(), Map::new(), Map::new());
        let mut targets = Vec::new();
        for adapted in self.adapters() {
            let path = &adapted.path;
            for part in adapted.method.parts() {
                let value = self.adapter_param(path, part).tensor_f32().detach();
                tensors.push((format!("{PREFIX}{path}.{part}"), value));
            }
            let own = adapted.method.low_rank();
            if own.rank != rank {
                ranks.insert(format!("^{path}"), own.rank.into());
            }
            if own.alpha.to_bits() != alpha.to_bits() {
                alphas.insert(format!("^{path}"), f64::from(own.alpha).into());
            }
            targets.push(path.clone());
        }
        let mut modules = BTreeSet::new();
        for param in self.whole_layers() {
            let name = param.name();
            tensors.push((format!("{PREFIX}{name}"), param.tensor_f32().detach()));
            modules.insert(name.rsplit_once('.').map_or(name, |(layer, _)| layer).to_owned());
        }
        let tasks =
            [("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")];
        let task = tasks.iter().find(|(ending, _)| class.ends_with(ending)).map(|(_, task)| *task);
        let task = task.or(self.is_causal().then_some("CAUSAL_LM"));
        let modules = (!modules.is_empty()).then_some(modules);
        let settings = json!({
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "use_dora": matches!(method, AdapterMethod::Dora(_)),
            "use_rslora": scaling == LoraScaling::RootOfRank,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": targets,
            "fan_in_fan_out": self.adapters().iter().any(|adapted| adapted.transposed),
            "bias": "none",
            "modules_to_save": modules,
            "init_lora_weights": true,
            "inference_mode": true,
        });
        Ok((settings, TensorFile::new(tensors, &[("format", "pt")])?))
    }
}
