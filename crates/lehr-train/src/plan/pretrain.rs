//! Recipes for pre-training: the largest model that sees enough tokens within the budget.

use std::path::Path;
use std::time::Instant;

use lehr_infer::Inspection;
use lehr_tokenizer::Tokenizer;

use super::ladder::{bytes_per_token, sizes, vocabulary_for};
use super::measured::{Measured, measure_step};
use super::rates::Kind;
use super::reading::Overview;
use super::{Budget, FitData, Fitted, Fixed, Prediction, run_config};
use crate::recipe::{
    CheckpointConfig, EvalConfig, ModelConfig, SampleConfig, TokenizerConfig, TrainConfig,
};
use crate::rundir::check_places;
use crate::{Notes, Recipe, Result};

/// Minimum number of training tokens per weight of the matrix products. The compute-optimal ratio
/// of long runs is near 20 (Hoffmann et al. 2022). In runs of minutes most weights belong to the
/// vocabulary, and larger models learn more from fewer tokens.
const TOKENS_PER_WEIGHT: f64 = 1.0;
/// The same if the model reads the text as often as it may: then larger ones learn more from it
/// ("several passes" in docs/experiments.md).
const TOKENS_PER_WEIGHT_OF_ALL_TEXT: f64 = 0.3;

/// Share of held-out documents.
const HELD_OUT: f64 = 0.05;

/// Training FLOPs per weight and token: two forward, four backward (Kaplan et al. 2020).
const FLOPS_PER_WEIGHT: f64 = 6.0;

/// Number of tokens of text from which rows are long.
const LONG_TEXT_TOKENS: f64 = 200_000.0;
/// Tokens of a row, for short and for long texts.
const SEQ_LENS: (usize, usize) = (128, 256);

const STEPS_MIN: u64 = 20;

/// The plan says how long a run takes if that differs from the budget by more than this factor.
const SECONDS_TOLERANCE: f64 = 1.25;

/// Rows of the table for pairs of tokens for each token id. Only where no text is read twice is
/// there one, and value embeddings: in a second pass the first knows the text by heart and held-out
/// loss rises, and the others gain nothing ("which parts pay" in docs/experiments.md).
const BIGRAMS_PER_ID: usize = 5;
/// The largest share of the text that a run with tables reads. A twentieth is held out, and the
/// number of its tokens is an estimate ("four sizes predict a fifth" in docs/experiments.md).
const TABLES_MAX: f64 = 0.85;
/// The widest model with such a table. In wider ones it was not measured, and would be most of the
/// memory.
const BIGRAM_WIDTH_MAX: usize = 512;

/// A tenth of the steps lie between two evaluations and samples.
const LOOKS: u64 = 10;
/// The number of checkpoints. They are large beside a run of minutes.
const CHECKPOINTS: u64 = 4;
/// Tokens that an evaluation reads at most: the same for all sizes, so their losses compare.
const EVAL_TOKENS_MAX: usize = 131_072;
const SAMPLE_TOKENS: usize = 64;
const SAMPLE_TEMPERATURE: f32 = 0.8;

/// Seconds per byte of text for counting its words and encoding it, and per id for merging, on two
/// cores: 12.3 s and 2 s for 11.8 MB and 8,192 ids, 26 s for a sample of 100 MB and 16,384 ids.
const PREPARING: f64 = 0.25e-6;
const MERGING: f64 = 1.2e-3;
/// Bytes of a checkpoint for each weight, and how many are written in a second, hashes included.
const CHECKPOINT_BYTES: f64 = 12.0;
const CHECKPOINT_RATE: f64 = 300e6;
/// Time of a token in an evaluation, as a share of that in training.
const FORWARD_SHARE: f64 = 1.0 / 3.0;
/// Largest share of the budget for anything but steps.
const OTHER_MAX: f64 = 0.5;
/// Models that are measured at most until the plan fits what was measured.
const MEASURED_MAX: usize = 3;

/// A model that may be trained, with what its training costs.
#[derive(Clone)]
struct Candidate {
    config: ModelConfig,
    /// Weights of the matrix products of a token.
    weights: f64,
    /// Weights of tables whose rows are looked up.
    tables: f64,
    n_layers: usize,
    hidden_size: usize,
}

impl Candidate {
    /// Lists the models that may be trained, smallest first: the ladder's, or the loaded one.
    fn list(fixed: &Fixed, vocab_size: usize, context: usize) -> Result<Vec<Self>> {
        if fixed.text("model.kind") == Some("load") {
            let path = fixed.text("model.path").unwrap_or_default();
            return Ok(vec![Self::loaded(path)?]);
        }
        let new = |size: super::ladder::Size| Self {
            config: size.model(context),
            weights: size.matmul_weights(vocab_size),
            tables: size.table_weights(vocab_size),
            n_layers: size.n_layers,
            hidden_size: size.hidden_size,
        };
        Ok(sizes(fixed).into_iter().map(new).collect())
    }

    /// Adds value embeddings to a model of lehr's own family and, if it is not too wide, a table
    /// for pairs of tokens.
    fn add_tables(&mut self, vocab_size: usize) {
        let ModelConfig::Lehr(model) = &mut self.config else { return };
        model.value_embeddings = true;
        if self.hidden_size <= BIGRAM_WIDTH_MAX {
            model.bigram_rows = BIGRAMS_PER_ID * vocab_size;
        }
        // Every second block has a vector for each token.
        let rows = model.bigram_rows + self.n_layers.div_ceil(2) * vocab_size;
        self.tables += (rows * self.hidden_size) as f64;
    }

    fn loaded(path: &str) -> Result<Self> {
        let found = Inspection::open(Path::new(path))?;
        let spec = found.config.as_ref().map(lehr_model::Config::spec);
        Ok(Self {
            config: ModelConfig::Load { path: path.to_owned() },
            weights: found.outline.map_or(0, |outline| outline.n_values()) as f64,
            tables: 0.0,
            n_layers: spec.as_ref().map_or(1, |spec| spec.n_layers),
            hidden_size: spec.as_ref().map_or(1, |spec| spec.hidden_size),
        })
    }

    /// Returns the training FLOPs of a token in rows of `seq_len`. The budget's share of the
    /// machine's rate was found with rows of usual length; what attention costs beyond them is
    /// added.
    fn flops_per_token(&self, seq_len: usize) -> f64 {
        let longer = seq_len.saturating_sub(SEQ_LENS.1) as f64;
        FLOPS_PER_WEIGHT * (self.weights + (self.n_layers * self.hidden_size) as f64 * longer)
    }
}

/// The decisions about a run from which its recipe is built.
#[derive(Clone)]
struct Plan {
    tokenizer: TokenizerConfig,
    vocab_size: usize,
    text_tokens: f64,
    model: Candidate,
    optimizer: Kind,
    seq_len: usize,
    batch_size: usize,
    grad_accumulation: usize,
    steps: u64,
    /// What steps showed, if they were made.
    measured: Option<Measured>,
    /// Seconds that the budget keeps for anything but steps.
    other_seconds: f64,
}

impl Plan {
    fn new(bytes: usize, budget: &Budget, fixed: &Fixed) -> Result<Self> {
        let (tokenizer, vocab_size) = tokenizer(bytes, fixed)?;
        let text_tokens = bytes as f64 / bytes_per_token(vocab_size);
        let usual = if text_tokens > LONG_TEXT_TOKENS { SEQ_LENS.1 } else { SEQ_LENS.0 };
        let limit = fixed.count("model.context").unwrap_or(usize::MAX);
        let seq_len = fixed.count("train.seq_len").unwrap_or(usual.min(limit));
        let optimizer = Kind::of(fixed);
        let whole = optimizer.passes_max() * text_tokens;
        let tokens_for = |model: &Candidate| {
            let affordable = match budget.flops() {
                Some(flops) => flops / model.flops_per_token(seq_len),
                None => budget.tokens_per_weight * model.weights,
            };
            affordable.min(whole)
        };
        let fits = |model: &Candidate| {
            let tokens = tokens_for(model);
            let least = match tokens < whole {
                true => TOKENS_PER_WEIGHT,
                false => TOKENS_PER_WEIGHT_OF_ALL_TEXT,
            };
            tokens >= least * model.weights
        };
        // Twice a training row, so a generated text has room for a prompt as well.
        let mut models = Candidate::list(fixed, vocab_size, 2 * seq_len)?;
        let mut model = models.swap_remove(models.iter().rposition(fits).unwrap_or(0));
        let tokens = tokens_for(&model);
        if tokens <= TABLES_MAX * text_tokens {
            model.add_tables(vocab_size);
        }
        let grad_accumulation = fixed.count("train.grad_accumulation").unwrap_or(1);
        let rows = optimizer.step_tokens(tokens) / seq_len / grad_accumulation;
        let batch_size = fixed.count("train.batch_size").unwrap_or(rows.max(1));
        let per_step = (batch_size * seq_len * grad_accumulation) as f64;
        let fitting = ((tokens / per_step) as u64).max(STEPS_MIN);
        let steps = fixed.count("train.steps").map_or(fitting, |steps| steps as u64);
        Ok(Self {
            tokenizer,
            vocab_size,
            text_tokens,
            model,
            optimizer,
            seq_len,
            batch_size,
            grad_accumulation,
            steps,
            measured: None,
            other_seconds: 0.0,
        })
    }

    /// Times steps of the fitted model, and fits anew to what was found, until both agree. Time for
    /// the tokenizer, evaluations and checkpoints is taken off the budget, and so is what `begun`
    /// has taken.
    fn with_measured_steps(
        mut self,
        bytes: usize,
        budget: &mut Budget,
        fixed: &Fixed,
        recipe: &dyn Fn(&Self) -> Result<Recipe>,
        begun: Instant,
    ) -> Result<Self> {
        let (Some(place), whole) = (budget.measure, budget.seconds) else { return Ok(self) };
        for _ in 0..MEASURED_MAX {
            let found = measure_step(&recipe(&self)?, self.vocab_size, place)?;
            let Some(found) = found else { break };
            let per_token = found.seconds / self.tokens_per_step();
            let other = begun.elapsed().as_secs_f64() + self.other_seconds(bytes, per_token);
            let flops = self.tokens_per_step() * self.model.flops_per_token(self.seq_len);
            *budget = budget.with_measured(flops, found.seconds);
            let kept = whole.map_or(0.0, |whole| other.min(OTHER_MAX * whole));
            budget.seconds = whole.map(|whole| whole - kept);
            let before = (self.model.hidden_size, self.model.n_layers, self.batch_size);
            self = Self::new(bytes, budget, fixed)?;
            (self.measured, self.other_seconds) = (Some(found), kept);
            if before == (self.model.hidden_size, self.model.n_layers, self.batch_size) {
                break;
            }
        }
        budget.seconds = whole;
        Ok(self)
    }

    fn tokens_per_step(&self) -> f64 {
        (self.batch_size * self.seq_len * self.grad_accumulation) as f64
    }

    /// Returns the seconds of a run for anything but its steps.
    fn other_seconds(&self, bytes: usize, per_token: f64) -> f64 {
        let held_out = HELD_OUT * self.text_tokens;
        let evaluation = held_out.min(EVAL_TOKENS_MAX as f64) * per_token * FORWARD_SHARE;
        let weights = self.model.weights + self.model.tables;
        let checkpoint = weights * CHECKPOINT_BYTES / CHECKPOINT_RATE;
        let is_trained = matches!(self.tokenizer, TokenizerConfig::Train { .. });
        let merging = if is_trained { self.vocab_size as f64 * MERGING } else { 0.0 };
        bytes as f64 * PREPARING
            + merging
            + LOOKS as f64 * evaluation
            + CHECKPOINTS as f64 * checkpoint
    }

    fn eval_batches_max(&self) -> u64 {
        (EVAL_TOKENS_MAX / (self.batch_size * self.seq_len)).max(1) as u64
    }

    fn tokens(&self) -> f64 {
        let per_step = self.batch_size * self.seq_len * self.grad_accumulation;
        self.steps as f64 * per_step as f64
    }

    fn reasons(&self, bytes: usize, budget: &Budget, fixed: &Fixed) -> Vec<String> {
        let Self { vocab_size, text_tokens, model, .. } = self;
        let tokens = self.tokens();
        let mut reasons = vec![
            format!(
                "{:.2} MB of text: {vocab_size} ids, about {:.2} M tokens",
                bytes as f64 / 1e6,
                text_tokens / 1e6
            ),
            format!(
                "{}{:.0} GFLOP/s of matrix products: {} blocks of width {} ({:.2} M weights), \
                 {:.2} M tokens ({:.1} times the text)",
                budget.seconds.map_or(String::new(), |seconds| format!("{seconds:.0} s at ")),
                budget.gflops,
                model.n_layers,
                model.hidden_size,
                model.weights / 1e6,
                tokens / 1e6,
                tokens / text_tokens
            ),
        ];
        if let Some(Measured { seconds, memory_bytes, .. }) = self.measured {
            reasons.push(format!(
                "a step of {:.0} tokens takes {:.1} ms and {:.0} MB here, measured; {:.0} s are \
                 for the steps, the rest for the tokenizer, evaluations and checkpoints",
                self.tokens_per_step(),
                seconds * 1e3,
                memory_bytes as f64 / 1e6,
                self.seconds(budget)
            ));
        }
        reasons.extend(self.other_duration(budget, fixed));
        reasons
    }

    /// Returns the seconds that the steps take.
    fn seconds(&self, budget: &Budget) -> f64 {
        match self.measured {
            Some(Measured { seconds, .. }) => seconds * self.steps as f64,
            None => budget.seconds_for(self.tokens() * self.model.flops_per_token(self.seq_len)),
        }
    }

    fn prediction(&self, budget: &Budget) -> Prediction {
        let seconds = self.seconds(budget);
        let tokens_per_s = Some(self.tokens() / seconds);
        let memory_bytes = self.measured.map(|measured| measured.memory_bytes);
        Prediction {
            weights: Some(self.model.weights),
            tokens: Some(self.tokens()),
            seconds: Some(seconds),
            tokens_per_s,
            memory_bytes,
            ..Prediction::default()
        }
    }

    /// Says how long the run takes, and why, if it cannot be as long as the budget.
    fn other_duration(&self, budget: &Budget, fixed: &Fixed) -> Option<String> {
        let Some(whole) = budget.seconds else { return self.fewer_tokens(budget, fixed) };
        let seconds = self.seconds(budget) + self.other_seconds;
        let ratio = seconds / whole;
        if (1.0 / SECONDS_TOLERANCE..=SECONDS_TOLERANCE).contains(&ratio) {
            return None;
        }
        let why = if fixed.has("train.steps") {
            format!("train.steps is given as {}", self.steps)
        } else if ratio > 1.0 {
            format!("a run has at least {STEPS_MIN} steps")
        } else {
            format!("more than {} passes over the text help little", self.optimizer.passes_max())
        };
        Some(format!("about {seconds:.0} s instead of {whole:.0} s: {why}"))
    }

    /// Says how many tokens a run without a limit of time has, and why, if those of its model are
    /// more than the text has.
    fn fewer_tokens(&self, budget: &Budget, fixed: &Fixed) -> Option<String> {
        let wanted = budget.tokens_per_weight * self.model.weights;
        let is_short = self.tokens() * SECONDS_TOLERANCE < wanted && !fixed.has("train.steps");
        is_short.then(|| {
            format!(
                "{:.1} tokens per weight instead of {:.1}: more than {} passes over the text help \
                 little",
                self.tokens() / self.model.weights,
                budget.tokens_per_weight,
                self.optimizer.passes_max()
            )
        })
    }

    fn recipe(&self, data: &FitData<'_>, out: &Path, seed: u64, prompt: &str) -> Recipe {
        let &Self { seq_len, batch_size, steps, .. } = self;
        let every_steps = steps / LOOKS;
        let base = Recipe::base();
        Recipe {
            run: run_config(&base, out, seed),
            data: data.config(&base, HELD_OUT),
            optimizer: self.optimizer.settings(
                self.model.hidden_size,
                (self.tokens() / self.text_tokens, self.text_tokens / self.tokens_per_step()),
                &base.optimizer,
            ),
            tokenizer: self.tokenizer.clone(),
            model: self.model.config.clone(),
            schedule: self.optimizer.schedule(steps),
            train: TrainConfig {
                steps,
                batch_size,
                seq_len,
                grad_accumulation: self.grad_accumulation as u64,
                ..base.train
            },
            eval: EvalConfig { every_steps, batches_max: self.eval_batches_max() },
            sample: SampleConfig {
                every_steps,
                prompts: vec![prompt.to_owned()],
                max_tokens: SAMPLE_TOKENS,
                temperature: SAMPLE_TEMPERATURE,
            },
            checkpoint: CheckpointConfig { every_steps: steps / CHECKPOINTS, ..base.checkpoint },
            watchdog: base.watchdog,
            objective: base.objective,
            average: base.average,
            adapter: base.adapter,
        }
    }
}

/// Returns the tokenizer and its number of ids.
fn tokenizer(bytes: usize, fixed: &Fixed) -> Result<(TokenizerConfig, usize)> {
    let is_kind = |kind| fixed.text("tokenizer.kind") == Some(kind);
    if is_kind("file") {
        let path = fixed.text("tokenizer.path").unwrap_or_default().to_owned();
        let vocab_size = Tokenizer::from_file(&path)?.vocab_size();
        return Ok((TokenizerConfig::File { path }, vocab_size));
    }
    let is_loaded = fixed.text("model.kind") == Some("load") && !fixed.has("tokenizer.kind");
    if is_kind("model") || is_loaded {
        let path = fixed.text("model.path").unwrap_or_default();
        let spec = Inspection::open(Path::new(path))?.config.map(|config| config.spec());
        let vocab_size = spec.map_or_else(|| vocabulary_for(bytes), |spec| spec.vocab_size);
        return Ok((TokenizerConfig::Model, vocab_size));
    }
    let fitting = vocabulary_for(bytes);
    let vocab_size = fixed.count("tokenizer.vocab_size").unwrap_or(fitting);
    Ok((TokenizerConfig::Train { vocab_size, pattern: "gpt4".into() }, vocab_size))
}

/// Fits a recipe for pre-training on `data` within `budget`, around the settings that are `fixed`.
///
/// The vocabulary grows with the text. The model is the largest of a ladder that sees at least one
/// token per weight within the budget, in at most three passes over the text. Steps of the model
/// are timed first, if the budget says where, and the number of steps is fitted to what was found.
/// The recipe then holds the number, so the run is a function of its recipe.
///
/// The text is read once and not held in memory. `notes` hears of it if that takes long.
///
/// # Errors
/// If the data cannot be read, or a fixed setting is impossible.
pub fn fit_pretrain(
    data: FitData<'_>,
    out: &Path,
    seed: u64,
    mut budget: Budget,
    fixed: &Fixed,
    notes: Notes<'_>,
) -> Result<Fitted> {
    let begun = Instant::now();
    check_places(out, None, &[data.path])?;
    let reading = data.reading();
    let options = fixed.read_options(reading.clone());
    let Overview { bytes, prompt, .. } = Overview::read(data.path, &options, notes)?;
    let recipe = |plan: &Plan| fixed.apply(plan.recipe(&data, out, seed, &prompt));
    let plan = Plan::new(bytes, &budget, fixed)?;
    let plan = plan.with_measured_steps(bytes, &mut budget, fixed, &recipe, begun)?;
    let reasons = plan.reasons(bytes, &budget, fixed);
    let (recipe, prediction) = (recipe(&plan)?, plan.prediction(&budget));
    let measured = plan.measured;
    Ok(Fitted { recipe, reasons, prediction, measured, notes: reading.take_notes() })
}
