//! Adapters in the format of PEFT: a folder with `adapter_config.json` and
//! `adapter_model.safetensors` (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).
//!
//! The tensors are named `base_model.model.PATH.lora_A.weight` and `…lora_B.weight`, where `PATH`
//! is the module of the base in `transformers`. Which layers are adapted, and their ranks, follow
//! from the tensors; scales follow from the settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lehr_tensor::{Param, Role, Shape, Tensor};
use serde_json::{Map, Value, json};

use crate::adapt::{AdapterMethod, LoraConfig, LoraScaling, SavedAdapters};
use crate::io::{self, ADAPTER_CONFIG, BaseModel, Checkpoint, TensorFile};
use crate::{Error, Model, Result};

/// The file of its tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// An older form of that file, which is read as well.
const OLD_WEIGHTS: &str = "adapter_model.bin";
/// The matrices of an adapted layer.
const PARTS: [&str; 2] = ["lora_A", "lora_B"];
/// What begins the names of tensors.
const PREFIX: &str = "base_model.model.";
/// What ends the name of a copy of the base's matrix. PEFT saves one of an adapted embedding or
/// head.
const COPY: &str = ".base_layer.weight";
/// Files of an adapter's folder that change no result: a description, the state of a training.
const SILENT: [&str; 6] = [
    "README.md",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
];
/// What is being done when an error occurs.
const OPENING: &str = "opening the adapter";

/// Settings that change nothing of a finished adapter: how it was started and trained, for which
/// hardware, and what follows from its tensors.
const WITHOUT_EFFECT: [&str; 23] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "monteclora_config",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Settings with an effect that lehr does not have, unless they are null, false, empty or "none".
const UNSUPPORTED: [(&str, &str); 12] = [
    ("alora_invocation_tokens", "adapters that begin within a text"),
    ("arrow_config", "mixtures of adapters"),
    ("bias", "biases that were trained beside the adapter"),
    ("kasa_config", "KaSA"),
    ("layer_replication", "layers that are repeated"),
    ("lora_bias", "biases of the adapter"),
    ("target_parameters", "adapters of parameters that are no linear layers"),
    ("trainable_token_indices", "rows of the embedding that were trained beside the adapter"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("velora_config", "VeLoRA"),
];

/// A saved adapter.
pub struct PeftAdapter {
    dir: PathBuf,
    base: Option<String>,
    tensors: Checkpoint,
    /// The adapted modules with their settings.
    layers: BTreeMap<String, LoraConfig>,
    /// Tensors of whole layers that were trained beside the adapter: a classifier's head.
    whole: Vec<String>,
}

impl PeftAdapter {
    /// Opens the adapter in the folder `dir`.
    ///
    /// # Errors
    /// If a file is missing or damaged, the method is not LoRA, or a setting has an effect that
    /// lehr does not have.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ADAPTER_CONFIG);
        let json = io::read_json(&path)?;
        let Some(settings) = json.as_object() else {
            return Err(Error::format(&path, "it is no object"));
        };
        check(settings, &path)?;
        let weights = [ADAPTER_WEIGHTS, OLD_WEIGHTS].map(|name| dir.join(name));
        let found = weights.iter().find(|path| path.is_file()).unwrap_or(&weights[0]);
        let tensors = Checkpoint::open(found)?;
        let whole = whole(&tensors, settings);
        let layers = layers(&tensors, settings, found)?;
        let base = settings.get("base_model_name_or_path").and_then(Value::as_str);
        Ok(Self { dir: dir.to_owned(), base: base.map(str::to_owned), tensors, layers, whole })
    }

    /// Returns whether `dir` is a folder with an adapter.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(ADAPTER_CONFIG).is_file()
    }

    /// Returns the folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether the folder is a checkpoint of lehr, which has a tokenizer and a chat template
    /// of its own beside the adapter.
    #[must_use]
    pub fn is_checkpoint(&self) -> bool {
        self.dir.join("config.json").is_file() && self.dir.join("tokenizer.json").is_file()
    }

    /// Returns what a user of the adapter over `base` must know: weights that are not those it was
    /// trained on, and files of its folder that nothing reads.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn warnings(&self, base: &Path) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if let Some(trained) = BaseModel::read(&self.dir)?
            && trained.sha256 != BaseModel::of(base)?.sha256
        {
            warnings.push(format!(
                "the adapter was trained on other weights than those of {}: on {}",
                base.display(),
                trained.path.display()
            ));
        }
        let unread = if self.is_checkpoint() { Vec::new() } else { unread(&self.dir)? };
        if !unread.is_empty() {
            let files = unread.join(", ");
            warnings.push(format!(
                "files of the adapter's folder that are not read: {files}; tokenizer and chat \
                 template are those of the model"
            ));
        }
        Ok(warnings)
    }

    /// Returns the base that the adapter names: a folder, or a name in a registry of models.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Returns the number of adapted layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Reads a tensor of a whole layer; `None` if the adapter does not have it.
    pub(crate) fn whole(&self, name: &str, shape: Shape) -> Option<Result<Tensor>> {
        let found = self.whole.iter().find(|found| inner(found) == name)?;
        Some(self.tensors.tensor(found, shape))
    }

    /// Checks that copies of the base's matrices are equal to those of `model`.
    pub(crate) fn check_copies(&self, model: &Model) -> Result<()> {
        for name in self.tensors.names() {
            let Some(layer) = inner(name).strip_suffix(COPY) else { continue };
            let named = model.params().named();
            let weight = named.iter().find(|weight| {
                weight.name().strip_suffix(".weight").is_some_and(|path| path == layer)
            });
            // A tied head has no matrix of its own.
            let Some(weight) = weight else { continue };
            let own = weight.to_host()?;
            let copy = self.tensors.tensor(name, own.shape())?;
            // What is stored in fewer bits differs by its rounding.
            if weight.stored().is_none() && own.data() != copy.data() {
                let found = format!("{name} differs from the matrix of the model");
                let hint = "use the model that the adapter was trained on";
                return Err(Error::adapter(OPENING, found, hint));
            }
        }
        Ok(())
    }

    /// Checks that the adapter has nothing but updates of linear layers.
    pub(crate) fn check_updates_only(&self) -> Result<()> {
        let Some(first) = self.whole.first() else { return Ok(()) };
        let found = format!(
            "{} has whole layers beside its updates, such as {first} (modules_to_save)",
            self.dir.display()
        );
        let hint =
            "the adapter of a classifier opens with lehr classify, as the run that trained it";
        Err(Error::adapter(OPENING, found, hint))
    }
}

impl SavedAdapters for PeftAdapter {
    fn find(&self, weights: &[String]) -> Option<(&str, LoraConfig)> {
        let paths = || weights.iter().filter_map(|name| name.strip_suffix(".weight"));
        let same = self.layers.iter().find(|(layer, _)| paths().any(|path| path == *layer));
        let ends = || {
            let fits = |layer: &str| paths().any(|path| is_end(path, layer) || is_end(layer, path));
            self.layers.iter().find(|(layer, _)| fits(layer))
        };
        same.or_else(ends).map(|(layer, config)| (layer.as_str(), *config))
    }

    fn tensor(&self, layer: &str, name: &str, shape: Shape) -> Result<Tensor> {
        // A checkpoint has names without what wraps a model.
        let names = [format!("{layer}.{name}"), format!("{PREFIX}{layer}.{name}")];
        let found = names.iter().find(|name| self.tensors.has(name));
        self.tensors.tensor(found.unwrap_or(&names[0]), shape)
    }

    fn check_used(&self, used: &BTreeSet<String>) -> Result<()> {
        let unused: Vec<_> = self.layers.keys().filter(|layer| !used.contains(*layer)).collect();
        let Some(first) = unused.first() else { return Ok(()) };
        let found = format!(
            "the model has no layer for {} of the {} layers of {}, such as {first}",
            unused.len(),
            self.layers.len(),
            self.dir.display()
        );
        Err(Error::adapter(OPENING, found, "use the model that the adapter was trained on"))
    }
}

/// Lists the files of an adapter's folder that say something and are not read.
fn unread(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_known =
            name.starts_with("adapter_") || name.starts_with('.') || SILENT.contains(&&*name);
        if !is_known && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the name of a tensor without what wraps a model.
fn inner(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Lists the tensors of whole layers.
fn whole(tensors: &Checkpoint, settings: &Map<String, Value>) -> Vec<String> {
    let modules = settings.get("modules_to_save").and_then(Value::as_array);
    let modules: Vec<_> = modules.into_iter().flatten().filter_map(Value::as_str).collect();
    let is_whole = |name: &&str| {
        let layer = inner(name).rsplit_once('.').map_or("", |(layer, _)| layer);
        modules.iter().any(|module| is_end(layer, module))
    };
    tensors.names().filter(is_whole).map(str::to_owned).collect()
}

/// Returns whether `short` is the path `long` or its end.
fn is_end(long: &str, short: &str) -> bool {
    long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Checks that lehr knows the effect of every setting.
fn check(settings: &Map<String, Value>, path: &Path) -> Result<()> {
    let refused = |found: String, expected: &str, hint: &str| {
        let found = format!("{} has {found}", path.display());
        Err(Error::Unsupported { found, expected: expected.to_owned(), hint: hint.to_owned() })
    };
    let method = settings.get("peft_type").and_then(Value::as_str).unwrap_or("no peft_type");
    if method != "LORA" {
        let hint = "merge the adapter first, with merge_and_unload of PEFT, if its method can be";
        return refused(format!("peft_type {method}"), "LORA", hint);
    }
    let is_absent = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let read = [
        "alpha_pattern",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "use_rslora",
    ];
    for (key, value) in settings {
        if read.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str()) {
            continue;
        }
        if is_absent(value) {
            continue;
        }
        let known = UNSUPPORTED.iter().find(|(name, _)| name == key);
        let what = known.map_or("a setting that lehr does not know", |(_, what)| what);
        let hint = "merge the adapter first, with merge_and_unload of PEFT";
        return refused(format!("{key} = {value}, {what}"), "an adapter without it", hint);
    }
    Ok(())
}

/// Returns the settings of all adapted modules.
fn layers(
    tensors: &Checkpoint,
    settings: &Map<String, Value>,
    path: &Path,
) -> Result<BTreeMap<String, LoraConfig>> {
    let fault = |reason: String| Error::format(path, reason);
    let number = |key: &str, usual: f64| match settings.get(key) {
        None | Some(Value::Null) => Ok(usual),
        Some(value) => {
            value.as_f64().ok_or_else(|| fault(format!("{key} is {value}, expected a number")))
        }
    };
    // The defaults of PEFT.
    let (rank, alpha) = (number("r", 8.0)?, number("lora_alpha", 8.0)?);
    let scaling = match settings.get("use_rslora").and_then(Value::as_bool) {
        Some(true) => LoraScaling::RootOfRank,
        _ => LoraScaling::Rank,
    };
    let (ranks, alphas) = (pattern(settings, "rank_pattern")?, pattern(settings, "alpha_pattern")?);
    let (mut layers, mut partners) = (BTreeMap::new(), BTreeSet::new());
    let whole = whole(tensors, settings);
    for name in tensors.names().filter(|name| whole.iter().all(|other| other != name)) {
        let inner = inner(name);
        if let Some(layer) = inner.strip_suffix(".lora_B.weight") {
            partners.insert(layer.to_owned());
            continue;
        }
        if inner.ends_with(COPY) {
            continue;
        }
        let Some(layer) = inner.strip_suffix(".lora_A.weight") else {
            return Err(fault(format!(
                "{name} is neither lora_A.weight nor lora_B.weight of a linear layer"
            )));
        };
        let found = tensors.shape(name).unwrap_or_default().first().copied().unwrap_or(0);
        let wanted = of_layer(&ranks, layer).unwrap_or(rank);
        if found as f64 != wanted {
            return Err(fault(format!(
                "{name} has rank {found}, but {ADAPTER_CONFIG} says {wanted} (r and rank_pattern)"
            )));
        }
        let alpha = of_layer(&alphas, layer).unwrap_or(alpha) as f32;
        layers.insert(layer.to_owned(), LoraConfig { rank: found, alpha, scaling });
    }
    let whole: BTreeSet<_> = layers.keys().cloned().collect();
    if let Some(single) = whole.symmetric_difference(&partners).next() {
        return Err(fault(format!("{single} has only one of lora_A.weight and lora_B.weight")));
    }
    if layers.is_empty() {
        return Err(fault("it has no tensors".to_owned()));
    }
    Ok(layers)
}

/// Reads a map from modules to numbers.
fn pattern(settings: &Map<String, Value>, key: &str) -> Result<Vec<(String, f64)>> {
    let refused = |found: String| Error::Unsupported {
        found: format!("{key} of {ADAPTER_CONFIG} has {found}"),
        expected: "names of modules, or the ends of their names, with a number each".to_owned(),
        hint: "merge the adapter first, with merge_and_unload of PEFT".to_owned(),
    };
    let Some(map) = settings.get(key).and_then(Value::as_object) else { return Ok(Vec::new()) };
    let mut pairs = Vec::new();
    for (name, value) in map {
        // PEFT takes them for regular expressions. Those that are more than a name are refused.
        let plain = name.strip_prefix('^').unwrap_or(name);
        if !plain.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') {
            return Err(refused(format!("the pattern {name:?}")));
        }
        let number = value.as_f64().ok_or_else(|| refused(format!("{name:?} = {value}")))?;
        pairs.push((name.clone(), number));
    }
    Ok(pairs)
}

/// Returns the number of the first pattern that names `layer`, or with `^` begins with it.
fn of_layer(patterns: &[(String, f64)], layer: &str) -> Option<f64> {
    let names = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => layer == whole,
        None => is_end(layer, pattern),
    };
    patterns.iter().find(|(pattern, _)| names(pattern)).map(|(_, number)| *number)
}

impl Model {
    /// Writes the adapters into the folder `dir` in the format of PEFT. `base` is how the base is
    /// named: a folder, or a name in a registry of models.
    ///
    /// # Errors
    /// If the model has no adapters or a file cannot be written.
    pub fn save_adapter(&self, dir: &Path, base: &str) -> Result<()> {
        let (settings, file) = self.adapter_files(base)?;
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
            for part in PARTS {
                let param = self.adapter_param(&adapted.path, part);
                param.set(&saved.tensor(layer, &format!("{part}.weight"), param.shape())?)?;
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
        let param = self.params().get(&format!("{path}.{part}.weight"));
        param.expect("the adapter's parameters are the model's")
    }

    /// Returns the settings and the tensors of the adapters in the format of PEFT.
    ///
    /// # Errors
    /// If the model has no adapters, or one cannot be copied from its device.
    pub fn adapter_files(&self, base: &str) -> Result<(Value, TensorFile)> {
        let Some(AdapterMethod::Lora(LoraConfig { rank, alpha, scaling })) = self.adapter_method()
        else {
            let hint = "open the model with an adapter, or save the whole model";
            return Err(Error::adapter("saving the adapter", "the model has none", hint));
        };
        let (mut tensors, mut ranks, mut alphas) = (Vec::new(), Map::new(), Map::new());
        let mut targets = Vec::new();
        for adapted in self.adapters() {
            let path = &adapted.path;
            for part in PARTS {
                let value = self.adapter_param(path, part).tensor_f32().detach();
                tensors.push((format!("{PREFIX}{path}.{part}.weight"), value));
            }
            let AdapterMethod::Lora(own) = adapted.method;
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
        let task = match (modules.is_empty(), self.is_causal()) {
            (true, true) => Some("CAUSAL_LM"),
            (true, false) => None,
            (false, _) => Some("SEQ_CLS"),
        };
        let modules = (!modules.is_empty()).then_some(modules);
        let settings = json!({
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
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
