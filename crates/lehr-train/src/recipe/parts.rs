//! The sections of a recipe.

use lehr_model::{ActivationCheckpointing, DTypeChoice, DeviceChoice};
use serde::{Deserialize, Serialize};

use super::Recipe;

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run directory.
    pub dir: String,
    /// Seed of weights, order and samples.
    pub seed: u64,
    /// Where: `auto` (a GPU if one can be used), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
    /// The type of activations: `auto` (bf16 on a GPU, f32 on the CPU), `f32`, `bf16` or `f16`
    /// (with loss scaling).
    pub dtype: DTypeChoice,
    /// Whether wide matrices are multiplied in fp8 during training.
    pub fp8: bool,
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
    /// Plain text is cut into documents of at least this many bytes; 0 = whole files.
    pub document_bytes: usize,
    /// Field of the text in records.
    pub text_field: String,
    /// Field of the label in records.
    pub label_field: String,
}

/// `[tokenizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// A byte-level BPE trained on the training documents.
    Train {
        /// Number of ids, special tokens included.
        vocab_size: usize,
        /// How text is cut before merging: `gpt2` or `gpt4`.
        pattern: String,
    },
    /// An existing `tokenizer.json`.
    File {
        /// The file.
        path: String,
    },
    /// The one of the loaded model.
    Model,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelConfig {
    /// A new Llama-type model (RoPE, RMSNorm, SwiGLU, grouped-query attention).
    Llama {
        /// Blocks.
        n_layers: usize,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Query heads.
        n_heads: usize,
        /// Key-value heads.
        n_kv_heads: usize,
        /// Width of the MLP.
        mlp_size: usize,
        /// Longest context.
        context: usize,
        /// Whether the head is the embedding.
        tie_embeddings: bool,
        /// Standard deviation of new weights.
        init_std: f32,
    },
    /// A new GPT-2-type model (learned positions, LayerNorm, GELU).
    Gpt2 {
        /// Blocks.
        n_layers: usize,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Heads.
        n_heads: usize,
        /// Longest context.
        context: usize,
        /// Standard deviation of new weights.
        init_std: f32,
    },
    /// An existing run, checkpoint or Hugging Face folder.
    Load {
        /// The folder.
        path: String,
    },
}

/// `[objective]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObjectiveKind {
    /// The next token of documents.
    NextToken,
    /// The assistant's words in conversations.
    Chat,
    /// The label of texts.
    Classify,
}

/// `[optimizer]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// AdamW (Loshchilov and Hutter 2019). Matrices decay, vectors (norms, biases) do not.
    Adamw {
        /// Peak learning rate.
        lr: f32,
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
        /// The gradient's norm is clipped to this; 0 = never.
        clip_norm: f32,
        /// Embedding tables learn this many times as fast: a row is touched by few tokens of a
        /// batch, and a short run must move it far.
        embedding_lr_ratio: f32,
        /// Each parameter is updated as soon as backward has its gradient, whose memory is then
        /// free. It excludes clipping and accumulation, which need the whole gradient.
        in_backward: bool,
    },
}

/// `[schedule]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// Linear warm-up, then half a cosine down to `min_ratio` of the peak.
    Cosine {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Share of the peak at the end.
        min_ratio: f32,
    },
    /// Linear warm-up, constant, then linear decay to `min_ratio` of the peak over the last
    /// `decay_steps` (warm-up, stable, decay: Hu et al. 2024).
    Wsd {
        /// Steps of warm-up.
        warmup_steps: u64,
        /// Steps of decay.
        decay_steps: u64,
        /// Share of the peak at the end.
        min_ratio: f32,
    },
}

/// `[train]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of a micro-batch.
    pub rows: usize,
    /// Tokens of a row.
    pub len: usize,
    /// Micro-batches per step.
    pub accumulation: u64,
    /// What becomes of activations until backward: `none`, `recompute` or `offload`.
    pub activations: ActivationCheckpointing,
    /// On a GPU, whether a step is recorded as a CUDA graph and started by one launch.
    pub cuda_graph: bool,
}

/// `[eval]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between evaluations; 0 = only at the end.
    pub every_steps: u64,
    /// At most so many batches each time; 0 = all.
    pub batches_max: u64,
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// Steps between samples; 0 = only at the end.
    pub every_steps: u64,
    /// Texts to continue (or to answer).
    pub prompts: Vec<String>,
    /// New tokens per sample.
    pub max_tokens: usize,
    /// Temperature of sampling.
    pub temperature: f32,
}

/// `[checkpoint]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 = only at the end.
    pub every_steps: u64,
    /// How many of the newest are kept.
    pub keep: usize,
}

fn in_backward_of(recipe: &Recipe) -> bool {
    let OptimizerConfig::Adamw { in_backward, .. } = recipe.optimizer;
    in_backward
}

/// Collects the faults of all sections.
pub(super) fn validate(recipe: &Recipe, faults: &mut Vec<String>) {
    let mut check = |good: bool, key: &str, found: &dyn std::fmt::Display, expected: &str| {
        if !good {
            faults.push(format!("{key} is {found}, expected {expected}"));
        }
    };
    let Recipe { run, data, train, sample, checkpoint, .. } = recipe;
    check(!run.dir.is_empty(), "run.dir", &"empty", "a folder");
    let can = run.device != DeviceChoice::Cpu
        && ![DTypeChoice::F32, DTypeChoice::F16].contains(&run.dtype);
    let expected = "false where run.device is cpu or run.dtype is f32 or f16";
    check(!run.fp8 || can, "run.fp8", &run.fp8, expected);
    check(!data.path.is_empty(), "data.path", &"empty", "a file or folder");
    let fraction = data.validation_fraction;
    let split = data.validation_path.is_empty();
    let good = !split || (fraction > 0.0 && fraction < 1.0);
    check(good, "data.validation_fraction", &fraction, "between 0 and 1");
    check(train.steps > 0, "train.steps", &train.steps, "at least 1");
    check(train.rows > 0, "train.rows", &train.rows, "at least 1");
    check(train.len > 0, "train.len", &train.len, "at least 1");
    check(train.accumulation > 0, "train.accumulation", &train.accumulation, "at least 1");
    check(checkpoint.keep > 0, "checkpoint.keep", &checkpoint.keep, "at least 1");
    let waits = in_backward_of(recipe) || train.activations == ActivationCheckpointing::Offload;
    let expected = "false, or optimizer.in_backward = false and train.activations not offload";
    check(!(train.cuda_graph && waits), "train.cuda_graph", &train.cuda_graph, expected);
    if let Some(index) = sample.prompts.iter().position(String::is_empty) {
        check(false, "sample.prompts", &format!("empty at {index}"), "texts to continue");
    }
    let t = sample.temperature;
    check(t.is_finite() && t >= 0.0, "sample.temperature", &t, "0 or more");
    let OptimizerConfig::Adamw {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        clip_norm,
        embedding_lr_ratio: ratio,
        in_backward,
    } = recipe.optimizer;
    check(lr.is_finite() && lr >= 0.0, "optimizer.lr", &lr, "0 or more");
    check((0.0..1.0).contains(&beta1), "optimizer.beta1", &beta1, "0 or more, below 1");
    check((0.0..1.0).contains(&beta2), "optimizer.beta2", &beta2, "0 or more, below 1");
    check(eps > 0.0, "optimizer.eps", &eps, "more than 0");
    check(weight_decay >= 0.0, "optimizer.weight_decay", &weight_decay, "0 or more");
    let good = ratio.is_finite() && ratio >= 0.0;
    check(good, "optimizer.embedding_lr_ratio", &ratio, "0 or more");
    check(clip_norm >= 0.0, "optimizer.clip_norm", &clip_norm, "0 or more");
    let whole = clip_norm > 0.0 || train.accumulation > 1;
    let expected = "false, or optimizer.clip_norm = 0 and train.accumulation = 1";
    check(!(in_backward && whole), "optimizer.in_backward", &in_backward, expected);
    // An overflow is found when the whole gradient is there; then the step is made again.
    let scales = run.dtype == DTypeChoice::F16;
    let expected = "false, because run.dtype is f16";
    check(!(in_backward && scales), "optimizer.in_backward", &in_backward, expected);
    let (warmup, decay, min_ratio) = match recipe.schedule {
        ScheduleConfig::Cosine { warmup_steps, min_ratio } => (warmup_steps, 0, min_ratio),
        ScheduleConfig::Wsd { warmup_steps, decay_steps, min_ratio } => {
            (warmup_steps, decay_steps, min_ratio)
        }
    };
    check((0.0..=1.0).contains(&min_ratio), "schedule.min_ratio", &min_ratio, "0 to 1");
    let total = warmup.saturating_add(decay);
    check(total <= train.steps, "schedule: warm-up and decay", &total, "at most train.steps");
    match &recipe.tokenizer {
        TokenizerConfig::Train { pattern, .. } => {
            let known = pattern == "gpt2" || pattern == "gpt4";
            check(known, "tokenizer.pattern", pattern, "gpt2 or gpt4");
        }
        TokenizerConfig::File { path } => {
            check(!path.is_empty(), "tokenizer.path", &"empty", "a tokenizer.json");
        }
        TokenizerConfig::Model => {
            let loads = matches!(recipe.model, ModelConfig::Load { .. });
            check(loads, "tokenizer.kind", &"model", "train or file for a new model");
        }
    }
    let context = match recipe.model {
        ModelConfig::Llama { context, .. } | ModelConfig::Gpt2 { context, .. } => context,
        ModelConfig::Load { .. } => usize::MAX,
    };
    check(train.len <= context, "train.len", &train.len, "at most model.context");
}
