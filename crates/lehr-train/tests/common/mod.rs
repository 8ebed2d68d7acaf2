//! What the tests of this crate share: small data, small models, and an observer that remembers.

#![allow(dead_code, reason = "each test file uses a part")]

use lehr_model::{DTypeChoice, DeviceChoice};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lehr_data::SplitBy;
use lehr_tensor::Philox;
use lehr_train::recipe::{
    AdamwConfig, AdapterSection, CheckpointConfig, DataConfig, EvalConfig, LowRank, ModelConfig,
    ObjectiveKind, OptimizerConfig, OptimizerRule, RunConfig, SampleConfig, ScheduleConfig,
    Shuffle, TokenizerConfig, TrainConfig,
};
use lehr_train::{Event, Metrics, Observer, Recipe, RunDir, Task, WatchdogEvent, prepare};

const GLAD: [&str; 6] = ["clear", "bright", "even", "strong", "smooth", "lovely"];
const SAD: [&str; 6] = ["cracked", "dull", "uneven", "brittle", "rough", "spoilt"];
const THINGS: [&str; 8] = ["glass", "bowl", "lens", "pane", "lamp", "bottle", "vase", "rod"];

/// A sentence of its own for each `index`, and whether it praises.
fn sentence(index: u64) -> (String, bool) {
    let draw = Philox::new(7, 1).block(index);
    let glad = draw[0].is_multiple_of(2);
    let word = |list: &[&'static str], n: u32| list[n as usize % list.len()];
    let quality = if glad { word(&GLAD, draw[1]) } else { word(&SAD, draw[1]) };
    let (thing, days) = (word(&THINGS, draw[2]), draw[3] % 90);
    (format!("After {days} days in the lehr the {thing} came out {quality}."), glad)
}

/// Writes data for `objective` into `dir` and gives its path.
pub(crate) fn write_data(dir: &Path, objective: ObjectiveKind) -> PathBuf {
    let (name, text) = match objective {
        ObjectiveKind::NextToken => ("text.txt", documents(240)),
        ObjectiveKind::Chat => ("chat.jsonl", conversations(60)),
        ObjectiveKind::Classify { .. } => ("labelled.jsonl", labelled(80)),
        ObjectiveKind::Tag => ("entities.conll", entities(80)),
    };
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn documents(n: u64) -> String {
    let mut text = String::new();
    for index in 0..n {
        text += &sentence(index).0;
        // Paragraphs of unequal length.
        text += if index % 3 == 0 { "\n\n" } else { " " };
    }
    text
}

fn conversations(n: u64) -> String {
    let mut lines = String::new();
    for index in 0..n {
        let (text, glad) = sentence(index);
        // Answers of unequal length, so that micro-batches hold unequal numbers of targets.
        let answer = if glad { "Good." } else { "It has to be melted and cooled again, slowly." };
        let messages = serde_json::json!([
            { "role": "user", "content": text },
            { "role": "assistant", "content": answer },
        ]);
        writeln!(lines, "{}", serde_json::json!({ "messages": messages })).unwrap();
    }
    lines
}

fn labelled(n: u64) -> String {
    let mut lines = String::new();
    for index in 0..n {
        let (text, glad) = sentence(index);
        let label = if glad { "good" } else { "bad" };
        writeln!(lines, "{}", serde_json::json!({ "text": text, "label": label })).unwrap();
    }
    lines
}

/// Sentences of words and tags: the thing and its quality are entities.
fn entities(n: u64) -> String {
    let mut lines = String::new();
    for index in 0..n {
        let text = sentence(index).0;
        let words: Vec<&str> = text.trim_end_matches('.').split(' ').collect();
        for (at, word) in words.iter().enumerate() {
            let tag = match at {
                1 => "B-TIME",
                2 => "I-TIME",
                7 => "B-THING",
                at if at + 1 == words.len() => "B-QUALITY",
                _ => "O",
            };
            writeln!(lines, "{word} {tag}").unwrap();
        }
        lines.push('\n');
    }
    lines
}

/// The base recipe's keys of AdamW.
pub(crate) fn adamw() -> AdamwConfig {
    match Recipe::base().optimizer.rule {
        OptimizerRule::Adamw(config) => config,
        OptimizerRule::Muon(_) => panic!("the base recipe has AdamW"),
    }
}

/// A GPT-2 of two blocks of `width`.
pub(crate) fn gpt2(width: usize) -> ModelConfig {
    ModelConfig::Gpt2 { n_layers: 2, hidden_size: width, n_heads: 4, context: 64, init_std: 0.05 }
}

/// A Llama of two blocks of `width`, with grouped heads.
pub(crate) fn llama(width: usize) -> ModelConfig {
    ModelConfig::Llama {
        n_layers: 2,
        hidden_size: width,
        n_heads: 4,
        n_kv_heads: 2,
        mlp_size: 2 * width,
        context: 64,
        tie_embeddings: true,
        init_std: 0.05,
    }
}

/// A short run of `model` in `dir`, with data for `objective` beside it.
pub(crate) fn recipe(dir: &Path, model: ModelConfig, objective: ObjectiveKind) -> Recipe {
    let data = write_data(dir, objective);
    let base = Recipe::base();
    Recipe {
        run: RunConfig {
            dir: dir.join("run").display().to_string(),
            seed: 3,
            device: DeviceChoice::Cpu,
            dtype: DTypeChoice::F32,
            ..base.run
        },
        data: DataConfig {
            path: data.display().to_string(),
            validation_fraction: 0.1,
            document_bytes: 300,
            // The stored losses are of this split and this order.
            split: SplitBy::Document,
            shuffle: Shuffle::Rows,
            ..base.data
        },
        tokenizer: TokenizerConfig::Train { vocab_size: 320, pattern: "gpt4".into() },
        model,
        objective,
        optimizer: OptimizerConfig { lr: 3e-3, clip_norm: 1.0, ..base.optimizer }.with_adamw(|a| {
            (a.beta2, a.weight_decay, a.embedding_lr_ratio) = (0.95, 0.1, 2.0);
        }),
        schedule: ScheduleConfig::Cosine { warmup_steps: 2, min_ratio: 0.1 },
        train: TrainConfig { steps: 6, batch_size: 4, seq_len: 48, ..base.train },
        average: base.average,
        adapter: base.adapter,
        eval: EvalConfig { every_steps: 0, batches_max: 2 },
        sample: SampleConfig { max_tokens: 8, temperature: 0.8, ..base.sample },
        checkpoint: CheckpointConfig { every_steps: 2, ..base.checkpoint },
        watchdog: base.watchdog,
    }
}

/// A finished run in `scratch/base`, and a recipe that trains an adapter of it on conversations.
pub(crate) fn adapting(scratch: &Path) -> (Recipe, Recipe) {
    let base_dir = scratch.join("base");
    std::fs::create_dir_all(&base_dir).unwrap();
    let base = recipe(&base_dir, llama(32), ObjectiveKind::NextToken);
    run_watched(&base, Watch::default());
    let objective = ObjectiveKind::Chat;
    let path = write_data(scratch, objective).display().to_string();
    let mut tuned = Recipe {
        data: DataConfig { path, ..base.data.clone() },
        tokenizer: TokenizerConfig::Model,
        model: ModelConfig::Load { path: base.run.dir.clone() },
        adapter: AdapterSection::Lora(LowRank::of_rank(4)),
        objective,
        ..base.clone()
    };
    tuned.run.dir = scratch.join("tuned").display().to_string();
    (base, tuned)
}

/// Prepares a recipe; tokenizer and tokens are kept beside the data, for all runs of a test.
pub(crate) fn prepared(recipe: &Recipe) -> Task {
    let cache = Path::new(&recipe.data.path).with_file_name("cache");
    prepare(recipe, &cache, &mut |_| ()).unwrap()
}

/// Remembers the events of a run and may ask it to stop.
#[derive(Default)]
pub(crate) struct Watch {
    /// The step the run began at.
    pub(crate) started: Option<u64>,
    /// The numbers of each step.
    pub(crate) steps: Vec<Metrics>,
    /// Checkpoints that were passed over, and why.
    pub(crate) skipped: Vec<(PathBuf, String)>,
    /// Warnings about the run as a whole.
    pub(crate) warnings: Vec<String>,
    /// Events of the watchdog.
    pub(crate) events: Vec<WatchdogEvent>,
    /// Checkpoints that were written.
    pub(crate) saved: Vec<PathBuf>,
    /// After this step the run is asked to stop.
    pub(crate) stop_after: Option<u64>,
    pub(crate) stop: std::sync::Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|m| m.loss).collect()
    }
}

impl Observer for Watch {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { step, .. } => self.started = Some(*step),
            Event::Stepped { metrics, .. } => {
                self.steps.push((*metrics).clone());
                if self.stop_after == Some(metrics.step) {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::Skipped { path, reason } => {
                self.skipped.push((path.to_path_buf(), (*reason).to_owned()));
            }
            Event::Saved { path } => self.saved.push(path.to_path_buf()),
            Event::Warning { text } => self.warnings.push((*text).to_owned()),
            Event::Watchdog { event } => self.events.push((*event).clone()),
            Event::Evaluated { .. } | Event::Sampled { .. } => {}
        }
    }
}

/// Runs a recipe from scratch or from its checkpoints, as a new process would.
pub(crate) fn run_watched(recipe: &Recipe, mut watch: Watch) -> (Task, Watch) {
    let (mut task, dir) = (prepared(recipe), RunDir::open(recipe).unwrap());
    let stop = std::sync::Arc::clone(&watch.stop);
    lehr_train::run(recipe, &mut task, Some(&dir), &mut watch, &stop).unwrap();
    (task, watch)
}

/// Runs a recipe without a directory.
pub(crate) fn run_in_memory(recipe: &Recipe) -> (Task, Watch) {
    let (mut task, mut watch) = (prepared(recipe), Watch::default());
    let stop = std::sync::Arc::clone(&watch.stop);
    lehr_train::run(recipe, &mut task, None, &mut watch, &stop).unwrap();
    (task, watch)
}

/// The bits of all weights, by name.
pub(crate) fn weights(task: &Task) -> Vec<(String, Vec<u32>)> {
    let bits = |p: &lehr_tensor::Param| {
        let values = p.to_host().unwrap().to_vec();
        (p.name().to_owned(), values.into_iter().map(f32::to_bits).collect())
    };
    task.objective.model().params().params().iter().map(bits).collect()
}

/// The files of a run's checkpoint that say all about its weights and moments.
pub(crate) fn checkpoint_bytes(recipe: &Recipe, step: u64) -> [Vec<u8>; 2] {
    let dir = recipe.dir().join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "optimizer.safetensors"].map(|name| {
        let path = dir.join(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()))
    })
}
