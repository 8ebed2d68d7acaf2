//! Recipes for fine-tuning: rows in which nearly all examples fit, and a few passes over the data.

use std::path::Path;

use lehr_data::entities::TaggedText;
use lehr_data::{
    Conversation, DatasetKind, LabelledFields, Reading, Renderer, conversation_lengths,
    read_conversations, read_labelled, read_tagged,
};
use lehr_infer::Loaded;
use lehr_model::{ActivationCheckpointing, Weights};
use lehr_tokenizer::chat::{Moment, Role};

use super::reading::Overview;
use super::{FitData, Fitted, Fixed, Prediction, run_config};
use crate::recipe::{
    AdapterSection, CheckpointConfig, EvalConfig, LowRank, ModelConfig, ObjectiveKind,
    OptimizerConfig, SampleConfig, ScheduleConfig, TrainConfig,
};
use crate::rundir::check_places;
use crate::watch::watch;
use crate::{Notes, Recipe, Result};

/// Share of held-out examples.
const HELD_OUT: f64 = 0.1;

/// Percentage of the examples that fit into a row without a cut.
const WHOLE_PERCENT: usize = 98;
/// Minimum tokens of a row.
const SEQ_LEN_MIN: usize = 64;

/// Number of steps in one pass, before the limits below. Small data sets take small batches, so
/// that there are enough updates.
const STEP_PART: usize = 100;
/// Minimum and maximum tokens of a step.
const STEP_TOKENS: (usize, usize) = (512, 8192);
const STEPS_MIN: u64 = 10;

/// Passes over a small data set, for decoders and for encoders.
const SMALL_SET_PASSES: (usize, usize) = (4, 3);
/// Passes over any other data set.
const PASSES: usize = 2;
/// Maximum number of tokens of a small data set.
const SMALL_SET_TOKENS: usize = 2_000_000;

/// Learning rate times width for decoders, measured on the small models that lehr trains ("what
/// quickstart compares" in docs/experiments.md: 5e-4 at a width of 192).
const LR_TIMES_WIDTH: f64 = 0.1;
/// The same for encoders. Published encoders are well trained and lose what they learned at higher
/// rates ("rates for fine-tuning encoders" in docs/experiments.md).
const ENCODER_LR_TIMES_WIDTH: f64 = 0.04;
const LR_MAX: f64 = 5e-4;
/// Learning rate of embeddings as a multiple of the rate. Pre-trained embeddings need a smaller one
/// than new ones (same section).
const EMBEDDING_LR_RATIO: f32 = 4.0;
/// A tenth of the steps are warm-up.
const WARMUP_PART: u64 = 10;

/// A quarter of the steps lie between two evaluations, samples and checkpoints.
const LOOKS: u64 = 4;

/// Usual rank of low-rank updates.
const LORA_RANK: usize = 16;

/// Learning rate of adapters as a multiple of that of the whole model, as usual for LoRA (Schulman
/// et al. 2025, "LoRA Without Regret").
const ADAPTER_LR: f64 = 10.0;

/// What is being done while a data set is read.
const READING: &str = "reading the data";
/// What is being done while its tokens are counted.
const COUNTING: &str = "counting tokens";

/// The examples of a data set, reduced to the facts that a plan needs.
struct Examples {
    objective: ObjectiveKind,
    /// Number of positions that each example takes in a row, sorted; of a sample if there is much
    /// text.
    lengths: Vec<usize>,
    /// Number of all examples.
    count: usize,
    prompts: Vec<String>,
}

impl Examples {
    fn read(
        loaded: &Loaded,
        data: &Path,
        kind: DatasetKind,
        (fixed, reading): (&Fixed, &Reading),
        notes: Notes<'_>,
    ) -> Result<Self> {
        let (objective, mut lengths, prompts, count) = match kind {
            DatasetKind::Labelled => {
                let LabelledFields { text, label } = LabelledFields::default();
                let named = |key, usual| fixed.text(key).map_or(usual, str::to_owned);
                let fields = LabelledFields {
                    text: named("data.text_field", text),
                    label: named("data.label_field", label),
                };
                let all = watch(notes, READING, 0, |_| read_labelled(data, &fields, reading))?;
                let texts: Vec<_> = all.iter().map(|e| e.text.as_str()).collect();
                let lengths = watch(notes, COUNTING, 0, |_| lengths(loaded, &texts))?;
                (ObjectiveKind::CLASSIFY, lengths, Vec::new(), all.len())
            }
            DatasetKind::Entities => {
                let all = watch(notes, READING, 0, |_| read_tagged(data, reading))?;
                let lengths = watch(notes, COUNTING, 0, |_| word_lengths(loaded, &all))?;
                (ObjectiveKind::Tag, lengths, Vec::new(), all.len())
            }
            DatasetKind::Chat => {
                let all = watch(notes, READING, 0, |_| read_conversations(data, reading))?;
                let prompts = first_question(&all, loaded)?;
                let template = loaded.template()?.at(Moment::now());
                let renderer = Renderer { tokenizer: &loaded.tokenizer, template: &template };
                // What there is to say of rendering is said when the run is prepared.
                let again = Reading::new(reading.part, reading.skip_bad);
                let lengths =
                    watch(notes, COUNTING, 0, |_| conversation_lengths(&all, &renderer, &again))?;
                (ObjectiveKind::Chat, lengths, prompts, all.len())
            }
            DatasetKind::Text => {
                let options = fixed.read_options(reading.clone());
                let overview = Overview::read(data, &options, notes)?;
                let lengths = overview.lengths(data, &options, &loaded.tokenizer, notes)?;
                let Overview { documents, prompt, .. } = overview;
                (ObjectiveKind::NextToken, lengths, vec![prompt], documents)
            }
        };
        lengths.sort_unstable();
        Ok(Self { objective, lengths, count, prompts })
    }

    /// Number of tokens of all examples, estimated if the lengths are of a sample.
    fn n_tokens(&self) -> usize {
        let counted: usize = self.lengths.iter().sum();
        match self.lengths.len() {
            n if n == self.count => counted,
            n => (counted as f64 * self.count as f64 / n.max(1) as f64) as usize,
        }
    }
}

/// Returns the number of tokens of each text with those around it.
fn lengths(loaded: &Loaded, texts: &[&str]) -> Result<Vec<usize>> {
    let framed = loaded.tokenizer.encode_ended(texts, usize::MAX)?;
    Ok(framed.into_iter().map(|framed| framed.ids.len()).collect())
}

/// Returns the number of tokens of each text, encoded word by word, with those around it.
fn word_lengths(loaded: &Loaded, texts: &[TaggedText]) -> Result<Vec<usize>> {
    let parts: Vec<_> = texts.iter().map(|text| (text.text.as_str(), &*text.words)).collect();
    let tokenizer = &loaded.tokenizer;
    let n_around = tokenizer.prefix_ids().len() + tokenizer.suffix_ids().len();
    let length = |words: Vec<Vec<u32>>| n_around + words.iter().map(Vec::len).sum::<usize>();
    Ok(tokenizer.encode_words(&parts)?.into_iter().map(length).collect())
}

/// The size of a run.
struct Extent {
    seq_len: usize,
    batch_size: usize,
    grad_accumulation: usize,
    steps: u64,
}

impl Extent {
    /// Computes the size of a run over `examples`, around the settings that are `fixed`.
    fn new(examples: &Examples, loaded: &Loaded, fixed: &Fixed) -> Self {
        let Examples { objective, lengths, .. } = examples;
        let n_tokens = examples.n_tokens();
        let long = lengths.get(lengths.len().saturating_sub(1) * WHOLE_PERCENT / 100);
        let long = long.copied().unwrap_or(SEQ_LEN_MIN);
        // A long document continues in the next row, so rows need not hold it whole.
        let most = match objective {
            ObjectiveKind::NextToken => STEP_TOKENS.1,
            ObjectiveKind::Chat | ObjectiveKind::Classify { .. } | ObjectiveKind::Tag => usize::MAX,
        };
        let fitting = long.next_power_of_two().clamp(SEQ_LEN_MIN, most);
        let fitting = fitting.min(loaded.model.spec().max_positions);
        let seq_len = fixed.count("train.seq_len").unwrap_or(fitting);
        let grad_accumulation = fixed.count("train.grad_accumulation").unwrap_or(1);
        let per_step = (n_tokens / STEP_PART).clamp(STEP_TOKENS.0, STEP_TOKENS.1);
        let rows = (per_step / seq_len / grad_accumulation).max(1);
        let batch_size = fixed.count("train.batch_size").unwrap_or(rows);
        let tokens = n_tokens * passes(n_tokens, loaded);
        let fitting = tokens.div_ceil(batch_size * seq_len * grad_accumulation) as u64;
        let steps = fixed.count("train.steps").map_or(fitting.max(STEPS_MIN), |n| n as u64);
        Self { seq_len, batch_size, grad_accumulation, steps }
    }

    /// Returns the policy of activations. Long rows are one per batch, so nothing else bounds the
    /// memory of their activations.
    fn activation_checkpointing(&self, base: &TrainConfig) -> ActivationCheckpointing {
        match self.seq_len > STEP_TOKENS.1 {
            true => ActivationCheckpointing::Recompute,
            false => base.activation_checkpointing,
        }
    }

    fn reason(&self, examples: &Examples) -> String {
        let Self { seq_len, steps, .. } = self;
        let (lengths, n_tokens) = (&examples.lengths, examples.n_tokens());
        let n_whole = lengths.partition_point(|length| length <= seq_len);
        let n_seen = *steps as f64 * (self.batch_size * seq_len * self.grad_accumulation) as f64;
        format!(
            "{} examples of {n_tokens} tokens: rows of {seq_len} hold {:.1} % of them whole, {:.1} \
             passes, {steps} steps",
            examples.count,
            100.0 * n_whole as f64 / lengths.len().max(1) as f64,
            n_seen / n_tokens as f64
        )
    }
}

/// Returns the number of passes over a data set.
fn passes(n_tokens: usize, loaded: &Loaded) -> usize {
    let (decoder, encoder) = SMALL_SET_PASSES;
    match n_tokens < SMALL_SET_TOKENS {
        true if loaded.model.is_causal() => decoder,
        true => encoder,
        false => PASSES,
    }
}

/// What is fine-tuned on what, and where.
#[derive(Clone, Copy, Debug)]
pub struct Finetuning<'a> {
    /// The model to start from.
    pub model: &'a Path,
    /// Conversations, labelled texts or more text.
    pub data: FitData<'a>,
    /// Which of these.
    pub kind: DatasetKind,
    /// The run directory.
    pub out: &'a Path,
    /// Seed of order and samples.
    pub seed: u64,
}

/// Fits a recipe for fine-tuning, around the settings that are `fixed`.
///
/// # Errors
/// If data or model cannot be read, or a fixed setting is impossible.
pub fn fit_finetune(given: Finetuning<'_>, fixed: &Fixed, notes: Notes<'_>) -> Result<Fitted> {
    let Finetuning { model, data, kind, out, seed } = given;
    check_places(out, Some(model), &[data.path])?;
    let loaded = Loaded::open(model, Weights::AsStored)?;
    if !matches!(kind, DatasetKind::Labelled | DatasetKind::Entities) {
        loaded.model.check_causal("training on the next token")?;
    }
    let reading = data.reading();
    let examples = Examples::read(&loaded, data.path, kind, (fixed, &reading), notes)?;
    let extent = Extent::new(&examples, &loaded, fixed);
    let mut reasons = vec![extent.reason(&examples)];
    let &Extent { seq_len, batch_size, grad_accumulation, steps } = &extent;
    let every_steps = steps / LOOKS;
    let base = Recipe::base();
    let activation_checkpointing = extent.activation_checkpointing(&base.train);
    if activation_checkpointing != base.train.activation_checkpointing {
        reasons.push("activations of such long rows are computed again in backward".to_owned());
    }
    let recipe = Recipe {
        run: run_config(&base, out, seed),
        data: data.config(&base, HELD_OUT),
        model: ModelConfig::Load { path: model.display().to_string() },
        objective: examples.objective,
        optimizer: optimizer(&base.optimizer, &loaded, fixed),
        schedule: ScheduleConfig::Cosine {
            warmup_steps: (steps / WARMUP_PART).max(1),
            min_ratio: 0.0,
        },
        train: TrainConfig {
            steps,
            batch_size,
            seq_len,
            grad_accumulation: grad_accumulation as u64,
            activation_checkpointing,
            ..base.train
        },
        eval: EvalConfig { every_steps, ..base.eval },
        sample: SampleConfig { every_steps, prompts: examples.prompts, ..base.sample },
        checkpoint: CheckpointConfig { every_steps, ..base.checkpoint },
        watchdog: base.watchdog,
        tokenizer: base.tokenizer,
        average: base.average,
        adapter: adapter(fixed),
    };
    // The steps follow from the data, so nothing is predicted.
    let (prediction, notes) = (Prediction::default(), reading.take_notes());
    Ok(Fitted { recipe: fixed.apply(recipe)?, reasons, prediction, measured: None, notes })
}

/// Returns the usual settings of the adapter that is fixed.
fn adapter(fixed: &Fixed) -> AdapterSection {
    let low_rank = || LowRank::of_rank(fixed.count("adapter.rank").unwrap_or(LORA_RANK));
    match fixed.text("adapter.kind") {
        Some("lora") => AdapterSection::Lora(low_rank()),
        Some("dora") => AdapterSection::Dora(low_rank()),
        _ => AdapterSection::None,
    }
}

fn optimizer(base: &OptimizerConfig, loaded: &Loaded, fixed: &Fixed) -> OptimizerConfig {
    let of_width = match loaded.model.is_causal() {
        true => LR_TIMES_WIDTH,
        false => ENCODER_LR_TIMES_WIDTH,
    };
    let factor = if adapter(fixed).is_none() { 1.0 } else { ADAPTER_LR };
    let lr = (factor * (of_width / loaded.model.spec().hidden_size as f64).min(LR_MAX)) as f32;
    OptimizerConfig { lr, ..*base }.with_adamw(|a| a.embedding_lr_ratio = EMBEDDING_LR_RATIO)
}

/// Returns the first question that leaves room for an answer, as a prompt, if there is one.
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
