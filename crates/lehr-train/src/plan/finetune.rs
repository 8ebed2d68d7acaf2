//! Recipes for fine-tuning: rows in which nearly all examples fit, and a few passes over the data.

use std::path::Path;

use lehr_data::{
    Conversation, DatasetKind, LabelledFields, Reading, read_conversations, read_labelled,
};
use lehr_infer::Loaded;
use lehr_model::Weights;
use lehr_tokenizer::chat::Role;

use super::reading::Overview;
use super::{FitData, Fitted, run_config};
use crate::recipe::{
    CheckpointConfig, EvalConfig, ModelConfig, ObjectiveKind, OptimizerConfig, SampleConfig,
    ScheduleConfig, TrainConfig,
};
use crate::watch::watch;
use crate::{Notes, Recipe, Result};

/// Share of held-out examples.
const HELD_OUT: f64 = 0.1;

/// Tokens that the template or the tokenizer adds around an example.
const FRAME_TOKENS: usize = 4;
/// Percentage of the examples that fit into a row without a cut.
const WHOLE_PERCENT: usize = 98;
/// Minimum and maximum tokens of a row.
const SEQ_LEN: (usize, usize) = (64, 512);

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

/// What is being done while a data set is read.
const READING: &str = "reading the data";

/// The examples of a data set, reduced to the facts that a plan needs.
struct Examples {
    objective: ObjectiveKind,
    /// Number of tokens of each example, sorted; of a sample if there is much text.
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
        reading: &Reading,
        notes: Notes<'_>,
    ) -> Result<Self> {
        let (objective, prompts, texts) = match kind {
            DatasetKind::Labelled => {
                let fields = LabelledFields::default();
                let all = watch(notes, READING, 0, |_| read_labelled(data, &fields, reading))?;
                let texts: Vec<String> = all.into_iter().map(|e| e.text).collect();
                (ObjectiveKind::Classify, Vec::new(), texts)
            }
            DatasetKind::Chat => {
                let all = watch(notes, READING, 0, |_| read_conversations(data, reading))?;
                let prompts = first_question(&all, loaded)?;
                let whole = |c: Conversation| {
                    c.messages.into_iter().map(|m| m.content).collect::<Vec<_>>().join("\n")
                };
                (ObjectiveKind::Chat, prompts, all.into_iter().map(whole).collect())
            }
            DatasetKind::Text => {
                let overview = Overview::read(data, reading, notes)?;
                let lengths = overview.lengths(data, reading, &loaded.tokenizer, notes)?;
                let Overview { documents, prompt, .. } = overview;
                return Ok(Self::new(ObjectiveKind::NextToken, vec![prompt], lengths, documents));
            }
        };
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let ids = watch(notes, "counting tokens", 0, |_| loaded.tokenizer.encode_batch(&texts))?;
        let lengths = ids.iter().map(Vec::len).collect();
        Ok(Self::new(objective, prompts, lengths, texts.len()))
    }

    fn new(
        objective: ObjectiveKind,
        prompts: Vec<String>,
        mut lengths: Vec<usize>,
        count: usize,
    ) -> Self {
        lengths.iter_mut().for_each(|n| *n += FRAME_TOKENS);
        lengths.sort_unstable();
        Self { objective, lengths, count, prompts }
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

/// The size of a run.
struct Extent {
    seq_len: usize,
    batch_size: usize,
    passes: usize,
    steps: u64,
}

impl Extent {
    /// Computes the size of a run over these examples.
    fn new(examples: &Examples, loaded: &Loaded) -> Self {
        let (lengths, n_tokens) = (&examples.lengths, examples.n_tokens());
        let long = lengths.get(lengths.len().saturating_sub(1) * WHOLE_PERCENT / 100);
        let long = long.copied().unwrap_or(SEQ_LEN.1);
        let seq_len = long.next_power_of_two().clamp(SEQ_LEN.0, SEQ_LEN.1);
        let seq_len = seq_len.min(loaded.model.spec().max_positions);
        let (decoder, encoder) = SMALL_SET_PASSES;
        let passes = match n_tokens < SMALL_SET_TOKENS {
            true if loaded.model.is_causal() => decoder,
            true => encoder,
            false => PASSES,
        };
        let per_step = (n_tokens / STEP_PART).clamp(STEP_TOKENS.0, STEP_TOKENS.1);
        let batch_size = (per_step / seq_len).max(1);
        let steps = ((n_tokens * passes).div_ceil(batch_size * seq_len) as u64).max(STEPS_MIN);
        Self { seq_len, batch_size, passes, steps }
    }
}

/// Fits a recipe for fine-tuning the model in `model` on `data`: conversations, labelled texts or
/// more text.
///
/// # Errors
/// If data or model cannot be read.
pub fn fit_finetune(
    model: &Path,
    data: FitData<'_>,
    kind: DatasetKind,
    out: &Path,
    seed: u64,
    notes: Notes<'_>,
) -> Result<Fitted> {
    let loaded = Loaded::open(model, Weights::AsStored)?;
    if kind != DatasetKind::Labelled {
        loaded.model.check_causal("training on the next token")?;
    }
    let reading = data.reading();
    let examples = Examples::read(&loaded, data.path, kind, &reading, notes)?;
    let Extent { seq_len, batch_size, passes, steps } = Extent::new(&examples, &loaded);
    let reasons = vec![format!(
        "{} examples of {} tokens: rows of {seq_len}, {passes} passes, {steps} steps",
        examples.count,
        examples.n_tokens()
    )];
    let every_steps = (steps / LOOKS).max(1);
    let base = Recipe::base();
    let recipe = Recipe {
        run: run_config(&base, out, seed),
        data: data.config(&base, HELD_OUT),
        model: ModelConfig::Load { path: model.display().to_string() },
        objective: examples.objective,
        optimizer: optimizer(&base.optimizer, &loaded),
        schedule: ScheduleConfig::Cosine {
            warmup_steps: (steps / WARMUP_PART).max(1),
            min_ratio: 0.0,
        },
        train: TrainConfig { steps, batch_size, seq_len, ..base.train },
        eval: EvalConfig { every_steps, ..base.eval },
        sample: SampleConfig { every_steps, prompts: examples.prompts, ..base.sample },
        checkpoint: CheckpointConfig { every_steps, ..base.checkpoint },
        tokenizer: base.tokenizer,
    };
    recipe.validate()?;
    Ok(Fitted { recipe, reasons, notes: reading.take_notes() })
}

fn optimizer(base: &OptimizerConfig, loaded: &Loaded) -> OptimizerConfig {
    let of_width = match loaded.model.is_causal() {
        true => LR_TIMES_WIDTH,
        false => ENCODER_LR_TIMES_WIDTH,
    };
    let lr = (of_width / loaded.model.spec().hidden_size as f64).min(LR_MAX) as f32;
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
