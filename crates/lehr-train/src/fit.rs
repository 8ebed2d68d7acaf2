//! Recipes fitted to data and machine, for runs without a recipe file.

use std::path::Path;
use std::time::Instant;

use lehr_data::{
    Conversation, DatasetKind, LabelledFields, ReadOptions, read_conversations, read_documents,
    read_labelled,
};
use lehr_infer::Loaded;
use lehr_model::{ActivationCheckpointing, Compute, DTypeChoice, DeviceChoice, Weights};
use lehr_tensor::gemm::{Matrix, gemm};
use lehr_tensor::{Device, cuda};
use lehr_tokenizer::chat::Role;

use crate::recipe::{
    CheckpointConfig, DataConfig, EvalConfig, ModelConfig, ObjectiveKind, OptimizerConfig,
    RunConfig, SampleConfig, ScheduleConfig, TokenizerConfig, TrainConfig,
};
use crate::{Recipe, Result};

/// What a fitted run may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Seconds of training.
    pub seconds: f64,
    /// GFLOP/s of matrix products on this machine ([`machine_gflops`]).
    pub gflops: f64,
}

/// A recipe and why it is as it is.
pub struct Fitted {
    /// The recipe.
    pub recipe: Recipe,
    /// One sentence per choice.
    pub reasons: Vec<String>,
}

/// Share of the machine's matrix-product speed a training step reaches, by experience: what is
/// planned with, not what is reported.
const EFFICIENCY: f64 = 0.6;

/// Measures GFLOP/s of an f32 matrix product of training's shape: the best of half a second, so
/// that neither waking cores nor other programs count.
#[must_use]
pub fn machine_gflops() -> f64 {
    let (m, n, k) = (1024, 1024, 512);
    let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.5f32; n * k], vec![0.0f32; m * n]);
    let mut best = f64::MAX;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        let (a, b) = (Matrix::rows(&a, k), Matrix::transposed(&b, k));
        if gemm((m, n, k), a, b, &mut c, n, false, None).is_err() {
            return 1.0;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (m * n * k) as f64 / best / 1e9
}

/// GFLOP/s of the device that `device` and `dtype` come to, as far as a training step gets:
/// [`machine_gflops`] on the CPU. On a GPU small models are far from the speed of large products,
/// so a quarter of it is planned with.
///
/// # Errors
/// If the device cannot be used.
pub fn device_gflops(compute: &Compute) -> Result<f64> {
    match compute.device {
        Device::Cpu => Ok(machine_gflops()),
        Device::Cuda(ordinal) => Ok(cuda::matmul_gflops(ordinal, compute.dtype)? / 4.0),
    }
}

/// Tokens a model should at least see per weight of its matrix products. The compute-optimal ratio
/// of long runs is near 20 (Hoffmann et al. 2022); within minutes, where most weights are the
/// vocabulary's, larger models learn more from fewer tokens.
const TOKENS_PER_WEIGHT: f64 = 1.0;

/// Sizes of the ladder of Llama-type models: blocks, width, heads, key-value heads, MLP.
const LADDER: [(usize, usize, usize, usize, usize); 8] = [
    (2, 64, 2, 1, 192),
    (3, 128, 4, 2, 384),
    (4, 192, 6, 2, 512),
    (4, 256, 4, 2, 704),
    (6, 320, 5, 5, 896),
    (6, 384, 6, 2, 1024),
    (8, 512, 8, 4, 1408),
    (12, 768, 12, 4, 2048),
];

/// Weights in the matrix products of a ladder model.
fn matmul_weights(size: (usize, usize, usize, usize, usize), vocab_size: usize) -> f64 {
    let (layers, d, heads, kv_heads, mlp) = size;
    let kv = d / heads * kv_heads;
    (layers * (2 * d * d + 2 * d * kv + 3 * d * mlp) + vocab_size * d) as f64
}

/// A recipe for pre-training on `data` within `budget`.
///
/// The vocabulary grows with the text; the model is the largest of a ladder that still sees
/// one token per weight within the budget and reads the text at most eight times. Short runs take
/// small batches: they need the steps more than the smooth gradient.
///
/// # Errors
/// If the data cannot be read.
pub fn fit_pretrain(data: &Path, out: &Path, seed: u64, budget: Budget) -> Result<Fitted> {
    let documents = read_documents(data, &ReadOptions::default())?;
    let bytes: usize = documents.iter().map(|d| d.text.len()).sum();
    let vocab_size = [(64_000_000, 16_384), (8_000_000, 8192), (1_500_000, 4096), (300_000, 2048)]
        .iter()
        .find(|(least, _)| bytes >= *least)
        .map_or(512, |(_, size)| *size);
    let bytes_per_token = 1.3 + (vocab_size as f64 / 512.0).log2() * 0.45;
    let text_tokens = bytes as f64 / bytes_per_token;
    let flops = budget.seconds * budget.gflops * 1e9 * EFFICIENCY;
    let tokens_for =
        |size| (flops / (6.0 * matmul_weights(size, vocab_size))).min(8.0 * text_tokens);
    let fits = |size: &&(usize, usize, usize, usize, usize)| {
        tokens_for(**size) >= TOKENS_PER_WEIGHT * matmul_weights(**size, vocab_size)
    };
    let size = *LADDER.iter().rev().find(fits).unwrap_or(&LADDER[0]);
    let (n_layers, hidden_size, n_heads, n_kv_heads, mlp_size) = size;
    let weights = matmul_weights(size, vocab_size);
    let tokens = tokens_for(size);
    let len = if text_tokens > 200_000.0 { 256 } else { 128 };
    let rows = match tokens {
        few if few < 5e6 => 512 / len,
        some if some < 5e7 => 4096 / len,
        _ => 8192 / len,
    };
    let steps = ((tokens / (rows * len) as f64) as u64).max(20);
    let lr = (0.08 / hidden_size as f64).min(1e-3) as f32;
    let reasons = vec![
        format!(
            "{:.2} MB of text: {vocab_size} ids, about {:.2} M tokens",
            bytes as f64 / 1e6,
            text_tokens / 1e6
        ),
        format!(
            "{:.0} s at {:.0} GFLOP/s of matrix products: {n_layers} blocks of width {hidden_size} \
             ({:.2} M weights), {:.2} M tokens ({:.1} times the text)",
            budget.seconds,
            budget.gflops,
            weights / 1e6,
            (steps as usize * rows * len) as f64 / 1e6,
            (steps as usize * rows * len) as f64 / text_tokens
        ),
    ];
    let every = (steps / 10).max(1);
    let recipe = Recipe {
        run: RunConfig {
            dir: out.display().to_string(),
            seed,
            device: DeviceChoice::Auto,
            dtype: DTypeChoice::Auto,
            fp8: false,
        },
        data: data_config(data, 0.05),
        tokenizer: TokenizerConfig::Train { vocab_size, pattern: "gpt4".into() },
        model: ModelConfig::Llama {
            n_layers,
            hidden_size,
            n_heads,
            n_kv_heads,
            mlp_size,
            context: 2 * len,
            tie_embeddings: true,
            init_std: 0.02,
        },
        objective: ObjectiveKind::NextToken,
        optimizer: adamw(lr, 15.0),
        schedule: ScheduleConfig::Cosine { warmup_steps: (steps / 20).max(1), min_ratio: 0.05 },
        train: TrainConfig {
            steps,
            rows,
            len,
            accumulation: 1,
            activations: ActivationCheckpointing::None,
            cuda_graph: false,
        },
        eval: EvalConfig { every_steps: every, batches_max: 64 },
        sample: SampleConfig {
            every_steps: every,
            prompts: vec![first_words(&documents[0].text)],
            max_tokens: 64,
            temperature: 0.8,
        },
        checkpoint: CheckpointConfig { every_steps: every, keep: 2 },
    };
    recipe.validate()?;
    Ok(Fitted { recipe, reasons })
}

/// A recipe for fine-tuning the model in `model` on `data`: conversations or labelled texts.
///
/// # Errors
/// If data or model cannot be read.
pub fn fit_finetune(
    model: &Path,
    data: &Path,
    kind: DatasetKind,
    out: &Path,
    seed: u64,
) -> Result<Fitted> {
    let loaded = Loaded::open(model, Weights::AsStored)?;
    let spec = loaded.model.spec();
    if kind != DatasetKind::Labelled {
        loaded.model.check_causal("training on the next token")?;
    }
    let (objective, texts, prompts) = match kind {
        DatasetKind::Labelled => {
            let all = read_labelled(data, &LabelledFields::default())?;
            let texts: Vec<_> = all.into_iter().map(|e| e.text).collect();
            (ObjectiveKind::Classify, texts, Vec::new())
        }
        DatasetKind::Chat => {
            let all = read_conversations(data)?;
            let prompts = first_question(&all, &loaded)?;
            let whole = |c: Conversation| {
                c.messages.into_iter().map(|m| m.content).collect::<Vec<_>>().join("\n")
            };
            (ObjectiveKind::Chat, all.into_iter().map(whole).collect(), prompts)
        }
        DatasetKind::Text => {
            let all = read_documents(data, &ReadOptions::default())?;
            let prompts = vec![first_words(&all[0].text)];
            let texts = all.into_iter().map(|d| d.text).collect();
            (ObjectiveKind::NextToken, texts, prompts)
        }
    };
    let refs: Vec<_> = texts.iter().map(String::as_str).collect();
    let mut lengths: Vec<usize> =
        loaded.tokenizer.encode_batch(&refs)?.iter().map(|ids| ids.len() + 4).collect();
    lengths.sort_unstable();
    let n_tokens: usize = lengths.iter().sum();
    // Rows hold nearly all examples whole.
    let long = lengths[(lengths.len() - 1) * 98 / 100];
    let len = long.next_power_of_two().clamp(64, 512).min(spec.max_positions);
    // An encoder is published well trained and forgets it at the rates that suit our own models.
    let (most_epochs, lr) = match loaded.model.is_causal() {
        true => (4, (0.1 / spec.hidden_size as f64).min(5e-4)),
        false => (3, (0.04 / spec.hidden_size as f64).min(5e-4)),
    };
    let epochs = if n_tokens < 2_000_000 { most_epochs } else { 2 };
    // Small sets take small batches, so that there are enough steps to learn from.
    let per_step = (n_tokens / 100).clamp(512, 8192);
    let rows = (per_step / len).max(1);
    let steps = ((n_tokens * epochs).div_ceil(rows * len) as u64).max(10);
    let reasons = vec![format!(
        "{} examples of {} tokens: rows of {len}, {epochs} passes, {steps} steps",
        lengths.len(),
        n_tokens
    )];
    let every = (steps / 4).max(1);
    let recipe = Recipe {
        run: RunConfig {
            dir: out.display().to_string(),
            seed,
            device: DeviceChoice::Auto,
            dtype: DTypeChoice::Auto,
            fp8: false,
        },
        data: data_config(data, 0.1),
        tokenizer: TokenizerConfig::Model,
        model: ModelConfig::Load { path: model.display().to_string() },
        objective,
        optimizer: adamw(lr as f32, 4.0),
        schedule: ScheduleConfig::Cosine { warmup_steps: (steps / 10).max(1), min_ratio: 0.0 },
        train: TrainConfig {
            steps,
            rows,
            len,
            accumulation: 1,
            activations: ActivationCheckpointing::None,
            cuda_graph: false,
        },
        eval: EvalConfig { every_steps: every, batches_max: 0 },
        sample: SampleConfig { every_steps: every, prompts, max_tokens: 48, temperature: 0.7 },
        checkpoint: CheckpointConfig { every_steps: every, keep: 2 },
    };
    recipe.validate()?;
    Ok(Fitted { recipe, reasons })
}

fn data_config(path: &Path, validation_fraction: f64) -> DataConfig {
    DataConfig {
        path: path.display().to_string(),
        validation_path: String::new(),
        validation_fraction,
        document_bytes: 2048,
        text_field: "text".into(),
        label_field: "label".into(),
    }
}

/// AdamW for short runs: see `docs/experiments.md` for how the numbers were found.
fn adamw(lr: f32, embedding_lr_ratio: f32) -> OptimizerConfig {
    OptimizerConfig::Adamw {
        lr,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.01,
        clip_norm: 2.0,
        embedding_lr_ratio,
        in_backward: false,
    }
}

/// The first question that leaves room for an answer, as a prompt; none if there is none.
fn first_question(all: &[Conversation], loaded: &Loaded) -> Result<Vec<String>> {
    let messages = all.iter().flat_map(|conversation| &conversation.messages);
    for message in messages.filter(|m| m.role == Role::User) {
        if 2 * loaded.tokenizer.encode(&message.content)?.len() < loaded.model.spec().max_positions
        {
            return Ok(vec![message.content.clone()]);
        }
    }
    Ok(Vec::new())
}

/// The first few words of a text, as a prompt.
fn first_words(text: &str) -> String {
    let mut prompt: String =
        text.trim_start().lines().next().unwrap_or("").chars().take(24).collect();
    if prompt.chars().count() == 24
        && let Some(end) = prompt.rfind(' ')
    {
        prompt.truncate(end);
    }
    prompt
}
