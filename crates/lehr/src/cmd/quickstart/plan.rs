//! Amounts of data and steps, fitted to the machine once and then kept.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use lehr_model::io::write_file;
use lehr_model::{Compute, DeviceChoice};
use lehr_train::measure_step;
use lehr_train::recipe::{
    CheckpointConfig, DataConfig, EvalConfig, ModelConfig, ObjectiveKind, OptimizerConfig, Recipe,
    RunConfig, SampleConfig, ScheduleConfig, TokenizerConfig, TrainConfig,
};
use serde::{Deserialize, Serialize};

use crate::fail::Hinted;

/// The default of `--seconds`.
pub(super) const SECONDS: f64 = 300.0;
/// Seconds of a step of pre-training with which the step counts below take [`SECONDS`]: two cores
/// of an Intel Xeon with AMX take 1.4 times as long, and end after 302 s with 0.74 of the steps.
const STEP_SECONDS: f64 = 0.0145;
/// Ids of the tokenizer.
const VOCAB_SIZE: usize = 4096;

/// Tokens of a row.
pub(super) const SEQ_LEN: usize = 128;
/// Rows of a batch in pre-training.
const BATCH_SIZE: usize = 4;
/// Labels per language when labels are few.
pub(super) const FEW: usize = 200;
/// Seeds of every comparison.
pub(super) const SEEDS: [u64; 3] = [1, 2, 3];

/// The decisions of a quickstart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Asked for.
    pub(super) seconds: f64,
    /// Seconds of a step of pre-training, measured.
    pub(super) step_seconds: f64,
    /// Bytes taken of each book.
    pub(super) book_bytes: usize,
    /// Steps of pre-training.
    pub(super) pretrain_steps: u64,
    /// Steps of fine-tuning for sentiment with all labels.
    pub(super) sentiment_steps: u64,
    /// The same with few labels.
    pub(super) few_steps: u64,
    /// Steps of fine-tuning for dialogue.
    pub(super) dialogue_steps: u64,
}

impl Plan {
    /// The plan in `path`, or a new one for this machine.
    pub(super) fn load_or_make(path: &Path, seconds: f64) -> Result<Self> {
        if let Ok(text) = std::fs::read_to_string(path) {
            return serde_json::from_str(&text).map_err(|e| {
                let found = format!("reading the plan {}: {e}", path.display());
                Hinted::error(found, "remove the folder to start again, or correct the plan")
            });
        }
        let plan = Self::fit(seconds, step_seconds()?);
        let text = serde_json::to_string_pretty(&plan)? + "\n";
        write_file(path, text.as_bytes())?;
        Ok(plan)
    }

    /// All steps scale with what the machine can do in the given time.
    fn fit(seconds: f64, step_seconds: f64) -> Self {
        let scale = seconds / SECONDS * STEP_SECONDS / step_seconds;
        let steps = |n: f64, least: u64| ((n * scale) as u64).max(least);
        Self {
            seconds,
            step_seconds,
            book_bytes: 220_000,
            pretrain_steps: steps(2800.0, 20),
            sentiment_steps: steps(400.0, 10),
            few_steps: steps(160.0, 10),
            dialogue_steps: steps(200.0, 10),
        }
    }

    /// The network of all stages.
    pub(super) fn model() -> ModelConfig {
        ModelConfig::Llama {
            n_layers: 4,
            hidden_size: 192,
            n_heads: 6,
            n_kv_heads: 2,
            mlp_size: 512,
            context: 256,
            tie_embeddings: true,
            init_std: 0.02,
        }
    }

    /// A recipe with the settings all stages share.
    pub(super) fn recipe(dir: &Path, data: &Path, objective: ObjectiveKind, steps: u64) -> Recipe {
        let base = Recipe::base();
        Recipe {
            run: RunConfig {
                dir: dir.display().to_string(),
                device: DeviceChoice::Cpu,
                ..base.run
            },
            data: DataConfig {
                path: data.display().to_string(),
                validation_fraction: 0.02,
                document_bytes: 1024,
                ..base.data
            },
            tokenizer: TokenizerConfig::Train { vocab_size: VOCAB_SIZE, pattern: "gpt4".into() },
            model: Self::model(),
            objective,
            optimizer: Self::optimizer(4e-4, 15.0),
            schedule: Self::cosine(steps),
            train: TrainConfig { steps, batch_size: BATCH_SIZE, seq_len: SEQ_LEN, ..base.train },
            average: base.average,
            adapter: base.adapter,
            eval: EvalConfig { every_steps: (steps / 5).max(1), batches_max: 0 },
            sample: SampleConfig {
                every_steps: (steps / 2).max(1),
                prompts: vec!["The ".into(), "这家酒店".into(), "却说曹操".into()],
                max_tokens: 40,
                temperature: 0.7,
            },
            checkpoint: CheckpointConfig {
                every_steps: (steps / 10).max(1),
                keep: 1,
                ..base.checkpoint
            },
            watchdog: base.watchdog,
        }
    }

    /// AdamW for short runs on small batches: a long memory of the second moment, no decay, and
    /// embeddings that learn `embedding_lr_ratio` times as fast as the rest.
    pub(super) fn optimizer(lr: f32, embedding_lr_ratio: f32) -> OptimizerConfig {
        OptimizerConfig { lr, ..Recipe::base().optimizer }.with_adamw(|adamw| {
            (adamw.weight_decay, adamw.embedding_lr_ratio) = (0.0, embedding_lr_ratio);
        })
    }

    /// A tenth of warm-up, then decay to zero.
    pub(super) fn cosine(steps: u64) -> ScheduleConfig {
        ScheduleConfig::Cosine { warmup_steps: (steps / 10).max(1), min_ratio: 0.0 }
    }
}

/// Times steps of pre-training on this machine.
fn step_seconds() -> Result<f64> {
    let recipe = Plan::recipe(Path::new("."), Path::new("."), ObjectiveKind::NextToken, 1);
    let compute = Compute::choose_for_training(recipe.run.device, recipe.run.dtype, &mut |_| ())?;
    let measured = measure_step(&recipe, VOCAB_SIZE, (compute.device, compute.dtype))?;
    Ok(measured.expect("the model is new").seconds)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plan for about {:.0} s at {:.1} ms per step, measured: {} steps of pre-training; {} \
             seeds of fine-tuning for sentiment with all labels ({} steps) and with {FEW} ({} \
             steps), with and without pre-training; {} steps of dialogue",
            self.seconds,
            1e3 * self.step_seconds,
            self.pretrain_steps,
            SEEDS.len(),
            self.sentiment_steps,
            self.few_steps,
            self.dialogue_steps
        )
    }
}
