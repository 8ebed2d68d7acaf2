//! Recipes for pre-training: the largest model that sees enough tokens within the budget.

use std::path::Path;

use lehr_data::{ReadOptions, read_documents};

use super::ladder::{LADDER, Size, bytes_per_token, vocabulary_for};
use super::{Budget, FitData, Fitted, first_words, run_config};
use crate::recipe::{
    CheckpointConfig, EvalConfig, OptimizerConfig, SampleConfig, ScheduleConfig, TokenizerConfig,
    TrainConfig,
};
use crate::{Recipe, Result};

/// Minimum number of training tokens per weight of the matrix products. The compute-optimal ratio
/// of long runs is near 20 (Hoffmann et al. 2022). In runs of minutes most weights belong to the
/// vocabulary, and larger models learn more from fewer tokens.
const TOKENS_PER_WEIGHT: f64 = 1.0;

/// Maximum number of passes over the text. Up to four passes are nearly as good as new text; after
/// about sixteen, more passes help little (Muennighoff et al. 2023).
const PASSES_MAX: f64 = 8.0;

/// Share of held-out documents.
const HELD_OUT: f64 = 0.05;

/// Training FLOPs per weight and token: two forward, four backward (Kaplan et al. 2020).
const FLOPS_PER_WEIGHT: f64 = 6.0;

/// Number of tokens of text from which rows are long.
const LONG_TEXT_TOKENS: f64 = 200_000.0;
/// Tokens of a row, for short and for long texts.
const SEQ_LENS: (usize, usize) = (128, 256);

/// Tokens per step for runs below a number of tokens; the first matching entry counts. Short runs
/// take small batches: more steps help them more than smoother gradients.
const STEP_TOKENS: [(f64, usize); 3] = [(5e6, 512), (5e7, 4096), (f64::INFINITY, 8192)];
const STEPS_MIN: u64 = 20;

/// Learning rate times width. The best rate falls with the width ("learning rates of the tiny
/// quickstart model" in docs/experiments.md: 4e-4 at a width of 192).
const LR_TIMES_WIDTH: f64 = 0.08;
const LR_MAX: f64 = 1e-3;
/// Learning rate of embeddings as a multiple of the rate (same section): each row is used by few
/// tokens of a batch.
const EMBEDDING_LR_RATIO: f32 = 15.0;
/// A twentieth of the steps are warm-up.
const WARMUP_PART: u64 = 20;
/// Share of the peak rate at the end.
const LR_MIN_RATIO: f32 = 0.05;

/// A tenth of the steps lie between two evaluations, samples and checkpoints.
const LOOKS: u64 = 10;
const EVAL_BATCHES_MAX: u64 = 64;
const SAMPLE_TOKENS: usize = 64;
const SAMPLE_TEMPERATURE: f32 = 0.8;

/// The decisions about a run from which its recipe is built.
struct Plan {
    vocab_size: usize,
    text_tokens: f64,
    size: Size,
    seq_len: usize,
    batch_size: usize,
    steps: u64,
}

impl Plan {
    fn new(bytes: usize, budget: &Budget) -> Self {
        let vocab_size = vocabulary_for(bytes);
        let text_tokens = bytes as f64 / bytes_per_token(vocab_size);
        let tokens_for = |size: &Size| {
            let affordable = budget.flops() / (FLOPS_PER_WEIGHT * size.matmul_weights(vocab_size));
            affordable.min(PASSES_MAX * text_tokens)
        };
        let fits =
            |size: &&Size| tokens_for(size) >= TOKENS_PER_WEIGHT * size.matmul_weights(vocab_size);
        let size = *LADDER.iter().rev().find(fits).unwrap_or(&LADDER[0]);
        let tokens = tokens_for(&size);
        let seq_len = if text_tokens > LONG_TEXT_TOKENS { SEQ_LENS.1 } else { SEQ_LENS.0 };
        let step_tokens = STEP_TOKENS.iter().find(|(below, _)| tokens < *below);
        let batch_size = step_tokens.map_or(STEP_TOKENS[2].1, |(_, n)| *n) / seq_len;
        let steps = ((tokens / (batch_size * seq_len) as f64) as u64).max(STEPS_MIN);
        Self { vocab_size, text_tokens, size, seq_len, batch_size, steps }
    }

    fn reasons(&self, bytes: usize, budget: &Budget) -> Vec<String> {
        let Self { vocab_size, text_tokens, size, .. } = self;
        let tokens = (self.steps as usize * self.batch_size * self.seq_len) as f64;
        vec![
            format!(
                "{:.2} MB of text: {vocab_size} ids, about {:.2} M tokens",
                bytes as f64 / 1e6,
                text_tokens / 1e6
            ),
            format!(
                "{:.0} s at {:.0} GFLOP/s of matrix products: {} blocks of width {} \
                 ({:.2} M weights), {:.2} M tokens ({:.1} times the text)",
                budget.seconds,
                budget.gflops,
                size.n_layers,
                size.hidden_size,
                size.matmul_weights(*vocab_size) / 1e6,
                tokens / 1e6,
                tokens / text_tokens
            ),
        ]
    }

    fn optimizer(&self, base: &OptimizerConfig) -> OptimizerConfig {
        let lr = (LR_TIMES_WIDTH / self.size.hidden_size as f64).min(LR_MAX) as f32;
        OptimizerConfig { lr, ..*base }.with_adamw(|a| a.embedding_lr_ratio = EMBEDDING_LR_RATIO)
    }
}

/// Fits a recipe for pre-training on `data` within `budget`.
///
/// The vocabulary grows with the text. The model is the largest of a ladder that sees at least one
/// token per weight within the budget, in at most eight passes over the text.
///
/// # Errors
/// If the data cannot be read.
pub fn fit_pretrain(data: FitData<'_>, out: &Path, seed: u64, budget: Budget) -> Result<Fitted> {
    let reading = data.reading();
    let options = ReadOptions { reading: reading.clone(), ..ReadOptions::default() };
    let documents = read_documents(data.path, &options)?;
    let bytes: usize = documents.iter().map(|d| d.text.len()).sum();
    let plan = Plan::new(bytes, &budget);
    let Plan { vocab_size, seq_len, batch_size, steps, .. } = plan;
    let every_steps = (steps / LOOKS).max(1);
    let base = Recipe::base();
    let recipe = Recipe {
        run: run_config(&base, out, seed),
        data: data.config(&base, HELD_OUT),
        tokenizer: TokenizerConfig::Train { vocab_size, pattern: "gpt4".into() },
        // Twice a training row, so a generated text has room for a prompt as well.
        model: plan.size.model(2 * seq_len),
        optimizer: plan.optimizer(&base.optimizer),
        schedule: ScheduleConfig::Cosine {
            warmup_steps: (steps / WARMUP_PART).max(1),
            min_ratio: LR_MIN_RATIO,
        },
        train: TrainConfig { steps, batch_size, seq_len, ..base.train },
        eval: EvalConfig { every_steps, batches_max: EVAL_BATCHES_MAX },
        sample: SampleConfig {
            every_steps,
            prompts: vec![first_words(&documents[0].text)],
            max_tokens: SAMPLE_TOKENS,
            temperature: SAMPLE_TEMPERATURE,
        },
        checkpoint: CheckpointConfig { every_steps, ..base.checkpoint },
        objective: base.objective,
    };
    recipe.validate()?;
    let reasons = plan.reasons(bytes, &budget);
    Ok(Fitted { recipe, reasons, notes: reading.take_notes() })
}
