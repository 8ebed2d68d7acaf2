//! Amounts of data and steps, fitted to the machine once and then kept.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use lehr_model::io::write_file;
use lehr_model::{Compute, DeviceChoice};
use lehr_train::recipe::{
    CheckpointConfig, DataConfig, DecayShape, EvalConfig, ObjectiveKind, OptimizerConfig, Recipe,
    RunConfig, SampleConfig, ScheduleConfig, TokenizerConfig, TrainConfig,
};
use lehr_train::{measure_step, model_of_depth, muon_for_width};
use serde::{Deserialize, Serialize};

use crate::fail::Hinted;

/// The default of `--seconds`.
pub(super) const SECONDS: f64 = 300.0;
/// Seconds of a step of pre-training on the machine for which the step counts below were chosen.
const STEP_SECONDS: f64 = 0.1;

/// Blocks of the network of all stages, each 64 wide.
const DEPTH: usize = 3;
const WIDTH: usize = 64 * DEPTH;
/// Tokens of a row.
pub(super) const SEQ_LEN: usize = 128;
/// Rows of a batch in pre-training.
const BATCH_SIZE: usize = 16;
const VOCAB_SIZE: usize = 4096;
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
    /// Measured: the time of a step of pre-training.
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
        let plan = Self::fit(seconds, measured_step()?);
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
            pretrain_steps: steps(1250.0, 20),
            sentiment_steps: steps(200.0, 10),
            few_steps: steps(240.0, 10),
            dialogue_steps: steps(180.0, 10),
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
            model: model_of_depth(DEPTH, 2 * SEQ_LEN),
            objective,
            optimizer: muon_for_width(WIDTH),
            schedule: Self::constant_then_down(steps),
            train: TrainConfig { steps, batch_size: BATCH_SIZE, seq_len: SEQ_LEN, ..base.train },
            average: base.average,
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

    /// AdamW for fine-tuning, with a rate for each role. A norm follows the embeddings, whose
    /// numbers are near 1: they move far.
    pub(super) fn finetuning(rates: Rates) -> OptimizerConfig {
        let Rates { matrices, embeddings, head } = rates;
        OptimizerConfig { lr: matrices, ..Recipe::base().optimizer }.with_adamw(|adamw| {
            adamw.weight_decay = 0.0;
            adamw.embedding_lr_ratio = 1.0;
            adamw.embeddings.lr = Some(embeddings);
            adamw.head.lr = Some(head);
        })
    }

    /// A short warm-up, then constant, then down to 0 over more than half of the steps.
    fn constant_then_down(steps: u64) -> ScheduleConfig {
        ScheduleConfig::Wsd {
            warmup_steps: (steps / 50).max(1),
            decay_steps: steps * 6 / 10,
            min_ratio: 0.0,
            decay_shape: DecayShape::Linear,
        }
    }

    /// A tenth of warm-up, then decay to zero.
    pub(super) fn cosine(steps: u64) -> ScheduleConfig {
        ScheduleConfig::Cosine { warmup_steps: (steps / 10).max(1), min_ratio: 0.0 }
    }
}

/// Learning rates of fine-tuning by role.
#[derive(Clone, Copy)]
pub(super) struct Rates {
    pub(super) matrices: f32,
    pub(super) embeddings: f32,
    pub(super) head: f32,
}

/// Times a step of pre-training on this machine.
fn measured_step() -> Result<f64> {
    let recipe =
        Plan::recipe(Path::new(""), Path::new(""), ObjectiveKind::NextToken, u64::from(u8::MAX));
    let (device, dtype) = (recipe.run.device, recipe.run.dtype);
    let compute = Compute::choose_for_training(device, dtype, &mut |_| ())?;
    let measured = measure_step(&recipe, VOCAB_SIZE, (compute.device, compute.dtype))?;
    Ok(measured.expect("a new model is timed").seconds)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plan for about {:.0} s, with {:.0} ms for a step of pre-training here: {} of these \
             steps; {} seeds of fine-tuning for sentiment with all labels ({} steps) and with \
             {FEW} ({} steps), with and without pre-training; {} steps of dialogue",
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
