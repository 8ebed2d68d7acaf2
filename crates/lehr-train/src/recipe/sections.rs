//! The sections of a recipe that are plain lists of keys.

use lehr_data::SplitBy;
use lehr_model::{ActivationCheckpointing, DTypeChoice, DeviceChoice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::stages::{BatchLr, BatchStage, SeqStage, check_stages};
use super::{Faults, ObjectiveKind, Recipe};

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run directory.
    pub dir: String,
    /// Seed of weights, order and samples.
    pub seed: u64,
    /// Device: `auto` (a GPU if one is usable), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
    /// Type of activations, on the CPU of the operands of products: `auto` (bf16 on a GPU and on
    /// a CPU that multiplies it faster, else f32), `f32`, `bf16` or `f16`
    /// (with loss scaling).
    pub dtype: DTypeChoice,
    /// Whether wide matrices are multiplied in fp8 during training.
    pub fp8: bool,
    /// Whether event files for TensorBoard are written. Changes no result.
    pub tensorboard: bool,
}

impl RunConfig {
    pub(super) fn validate(&self, faults: &mut Faults) {
        faults.check(!self.dir.is_empty(), "run.dir", &"empty", "a folder");
        let can = self.device != DeviceChoice::Cpu
            && ![DTypeChoice::F32, DTypeChoice::F16].contains(&self.dtype);
        let expected = "false where run.device is cpu or run.dtype is f32 or f16";
        faults.check(!self.fp8 || can, "run.fp8", &self.fp8, expected);
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// File or folder: .txt, .md, .jsonl, .json, .csv, .tsv, also .gz and .zst.
    pub path: String,
    /// Held-out file or folder; empty = split off `validation_fraction` of `path`.
    pub validation_path: String,
    /// Share of documents held out if there is no `validation_path`.
    pub validation_fraction: f64,
    /// What is held out as a whole: sources, or documents cut from them.
    pub split: SplitBy,
    /// What each pass over texts puts into a new order.
    pub shuffle: Shuffle,
    /// Plain text is cut into documents of at least this many bytes; 0 = whole files.
    pub document_bytes: usize,
    /// Field of the text in records.
    pub text_field: String,
    /// Field of the label in records.
    pub label_field: String,
    /// Whether bad records are left out and counted. Recipes of older runs lack it.
    #[serde(default)]
    pub skip_bad: bool,
    /// Variables of the chat template. The last field, because TOML writes tables after values.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_args: Map<String, Value>,
}

/// What each pass over texts puts into a new order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// Documents, which are then cut into rows anew, and the rows.
    Documents,
    /// Rows. All passes have the same ones, cut from the documents in the order of the files.
    Rows,
}

impl DataConfig {
    /// The values that keys have in recipes of runs that began before there were these keys.
    pub(crate) const OLD_RUNS: [(&'static str, &'static str); 2] =
        [("split", "document"), ("shuffle", "rows")];

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let names = self.template_args.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let used = names.is_empty() || recipe.objective == ObjectiveKind::Chat;
        faults.check(used, "data.template_args", &names, "none, because only chat has a template");
        faults.check(!self.path.is_empty(), "data.path", &"empty", "a file or folder");
        let fraction = self.validation_fraction;
        let good = !self.validation_path.is_empty() || (fraction > 0.0 && fraction < 1.0);
        faults.check(good, "data.validation_fraction", &fraction, "between 0 and 1");
    }
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Micro-batches per optimiser step.
    pub grad_accumulation: u64,
    /// The policy of activation checkpointing.
    pub activation_checkpointing: ActivationCheckpointing,
    /// On a GPU, whether a step is recorded as a CUDA graph and started by one launch.
    pub cuda_graph: bool,
    /// Patterns of the names of frozen parameters; `*` matches any text.
    pub freeze: Vec<String>,
    /// Whether classification starts a new head, for the labels of the data, although the loaded
    /// model has one. Runs from before this key lack it.
    #[serde(default)]
    pub new_head: bool,
    /// How the learning rate follows the tokens of a step in `batch_stages`.
    #[serde(default)]
    pub batch_lr: BatchLr,
    /// Tokens of a step in parts of the run; empty = always the same. The last fields, because TOML
    /// writes tables after values.
    #[serde(default)]
    pub batch_stages: Vec<BatchStage>,
    /// Tokens of a row in parts of the run; empty = always `seq_len`.
    #[serde(default)]
    pub seq_stages: Vec<SeqStage>,
}

impl TrainConfig {
    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let Self { steps, batch_size, seq_len, grad_accumulation, cuda_graph, .. } = *self;
        faults.check(steps > 0, "train.steps", &steps, "at least 1");
        faults.check(batch_size > 0, "train.batch_size", &batch_size, "at least 1");
        faults.check(seq_len > 0, "train.seq_len", &seq_len, "at least 1");
        let key = "train.grad_accumulation";
        faults.check(grad_accumulation > 0, key, &grad_accumulation, "at least 1");
        let has_use =
            matches!(recipe.objective, ObjectiveKind::Classify { .. } | ObjectiveKind::Tag)
                && recipe.model.is_loaded();
        let expected = "false, unless objective.kind is classify or tag and model.kind is load";
        faults.check(!self.new_head || has_use, "train.new_head", &self.new_head, expected);
        let waits = recipe.optimizer.in_backward
            || self.activation_checkpointing == ActivationCheckpointing::Offload;
        let expected = "false, or optimizer.in_backward = false and \
                        train.activation_checkpointing not offload";
        faults.check(!(cuda_graph && waits), "train.cuda_graph", &cuda_graph, expected);
        if let Some(index) = self.freeze.iter().position(String::is_empty) {
            let found = format!("empty at {index}");
            faults.check(false, "train.freeze", &found, "patterns of parameters' names");
        }
        check_stages(recipe, faults);
    }
}

/// `[eval]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between evaluations; 0 = only at the end.
    pub every_steps: u64,
    /// Maximum number of batches per evaluation; 0 = all.
    pub batches_max: u64,
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// Steps between samples; 0 = only at the end.
    pub every_steps: u64,
    /// Texts to continue or to answer.
    pub prompts: Vec<String>,
    /// New tokens per sample.
    pub max_tokens: usize,
    /// Temperature of sampling.
    pub temperature: f32,
}

impl SampleConfig {
    pub(super) fn validate(&self, faults: &mut Faults) {
        if let Some(index) = self.prompts.iter().position(String::is_empty) {
            let found = format!("empty at {index}");
            faults.check(false, "sample.prompts", &found, "texts to continue");
        }
        let t = self.temperature;
        faults.check(t.is_finite() && t >= 0.0, "sample.temperature", &t, "0 or more");
    }
}

/// `[checkpoint]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 = only at the end.
    pub every_steps: u64,
    /// Number of newest checkpoints to keep.
    pub keep: usize,
    /// Which weights a checkpoint holds.
    pub weights: SavedWeights,
}

/// Which weights a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedWeights {
    /// All: the checkpoint is a whole model.
    All,
    /// The trained ones. For frozen weights, the checkpoint refers to the loaded model.
    Trained,
}

impl CheckpointConfig {
    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        faults.check(self.keep > 0, "checkpoint.keep", &self.keep, "at least 1");
        let has_base = recipe.model.is_loaded();
        let good = self.weights == SavedWeights::All || has_base;
        faults.check(good, "checkpoint.weights", &"trained", "all, unless model.kind is load");
    }
}
