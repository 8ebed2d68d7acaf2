//! From a recipe to a task: tokenizer, data, model.

mod chat;
mod classify;
mod head;
mod held_out;
mod model;
mod tag;
mod text;
mod tokenizer;
mod tokenizer_cache;

use std::collections::BTreeSet;
use std::path::Path;

use lehr_data::{Loader, LoaderOptions, Part, Reading, has_validation, split_by_text};
use lehr_model::{Compute, FP8_SIDE_MIN};
use lehr_tensor::{DType, Device, ParamStore, tile16};
use sha2::{Digest, Sha256};

pub use model::config as new_config;
pub(crate) use tokenizer_cache::CACHED_TOKENIZER;

use crate::freeze::freeze;
use crate::recipe::{AverageConfig, DataConfig, ObjectiveKind};
use crate::schedule::Stages;
use crate::watch::watch;
use crate::{Error, Objective, Recipe, Result};

/// A prepared run: an objective and its data.
pub struct Task {
    /// The model and its loss.
    pub objective: Box<dyn Objective>,
    /// The endless training batches.
    pub train: Box<dyn Loader>,
    /// The held-out batches.
    pub validation: Box<dyn Loader>,
}

impl Task {
    /// Moves all models of the objective to the device of `compute`. Frozen models are computed in
    /// the same type as the model that is trained.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn to_device(&self, compute: &Compute) -> Result<()> {
        let models = std::iter::once(self.objective.model()).chain(self.objective.frozen_models());
        for model in models {
            model.to_device(compute.device, compute.dtype)?;
        }
        Ok(())
    }
}

/// A receiver of notes for the user.
pub type Notes<'a> = &'a mut dyn FnMut(&str);

/// Reads the data, trains or loads the tokenizer, and builds or loads the model. Keeps the
/// tokenizer and the token shards in `cache`, because they take long.
///
/// # Errors
/// If data, tokenizer or model are missing, damaged or do not fit one another.
pub fn prepare(recipe: &Recipe, cache: &Path, notes: Notes<'_>) -> Result<Task> {
    // The device comes first: an unusable one should fail before an hour of tokenizing.
    let mut begin = |n| notes(&format!("compiling {n} files of GPU kernels, once"));
    let compute = Compute::choose_for_training(recipe.run.device, recipe.run.dtype, &mut begin)?;
    compute.note.iter().for_each(|note| notes(note));
    if recipe.run.fp8 {
        compute.check_fp8()?;
    }
    let task = match recipe.objective {
        ObjectiveKind::NextToken => text::prepare(recipe, cache, notes),
        ObjectiveKind::Chat => chat::prepare(recipe, cache, notes),
        ObjectiveKind::Classify { pooling } => classify::prepare(recipe, pooling, cache, notes),
        ObjectiveKind::Tag => tag::prepare(recipe, cache, notes),
    }?;
    notes(&match (compute.device, compute.dtype) {
        (Device::Cpu, DType::BF16) => {
            format!("computing on the CPU, products in bf16 ({})", tile16::chosen())
        }
        (device, dtype) => format!("computing on {device} in {dtype}"),
    });
    if recipe.train.cuda_graph && !compute.device.is_cuda() {
        notes("train.cuda_graph changes nothing: the device is the CPU");
    }
    let model = task.objective.model();
    model.warnings().iter().for_each(|warning| notes(&format!("warning: {warning}")));
    if let Some(note) = freeze(model.params(), &recipe.train.freeze)? {
        notes(&note);
    }
    if !model.adapters().is_empty() {
        let n: usize = model.params().trainable().map(|p| p.shape().n_elements()).sum();
        notes(&format!("{n} weights of {} adapters are trained", model.adapters().len()));
    }
    say_plan(recipe, model.params(), notes);
    task.to_device(&compute)?;
    if recipe.run.fp8 {
        notes(&match model.use_fp8(FP8_SIDE_MIN) {
            0 => format!("fp8 is not used: no matrix has sides of at least {FP8_SIDE_MIN}"),
            n => format!("{n} matrices are multiplied in fp8"),
        });
    }
    Ok(task)
}

/// Notes the stages of the run, and the memory of averaged weights.
fn say_plan(recipe: &Recipe, params: &ParamStore, notes: Notes<'_>) {
    let stages = Stages::new(&recipe.train);
    if let Some(text) = stages.description() {
        notes(&text);
    }
    if recipe.average != AverageConfig::None {
        let trained = params.params().iter().filter(|p| p.is_trainable());
        let bytes: usize = trained.map(|p| 4 * p.shape().n_elements()).sum();
        notes(&format!(
            "averaged weights take {:.1} MB more, and twice as much while they are evaluated or \
             saved",
            bytes as f64 / 1e6
        ));
    }
}

/// Options of the training loader and of the validation loader.
fn loader_options(recipe: &Recipe) -> (LoaderOptions, LoaderOptions) {
    let (batch_size, seq_len) = (recipe.train.batch_size, recipe.train.seq_len);
    let train = LoaderOptions::shuffled(batch_size, seq_len, recipe.run.seed);
    (train, LoaderOptions::sequential(batch_size, seq_len))
}

/// Says how many of `all` examples are cut at `seq_len` tokens.
fn cut(n_cut: usize, all: usize, seq_len: usize) -> String {
    format!("{n_cut} cut at {seq_len} tokens{}", share(n_cut, all))
}

/// Says the share of `n` in `all`, if it is not 0.
fn share(n: usize, all: usize) -> String {
    match n {
        0 => String::new(),
        n => format!(", {:.1} %", 100.0 * n as f64 / all as f64),
    }
}

/// The training and the validation side of a data set.
struct Sides<T> {
    train: Vec<T>,
    validation: Vec<T>,
}

/// Reads the examples (`what`) of a data set with `read`, and holds out those of
/// `data.validation_path`, or of the data set's own validation split, or a share of them, chosen by
/// their `text`.
fn held_out<T: Send>(
    recipe: &Recipe,
    what: &str,
    read: impl Fn(&str, &Reading) -> lehr_data::Result<Vec<T>> + Sync,
    text: impl Fn(&T) -> String,
    notes: Notes<'_>,
) -> Result<Sides<T>> {
    let DataConfig { path, validation_path, validation_fraction, skip_bad, .. } = &recipe.data;
    let mut side = |path: &str, part| -> Result<_> {
        let reading = Reading::new(part, *skip_bad);
        let examples = watch(notes, "reading the data", 0, |_| read(path, &reading))?;
        reading.take_notes().iter().for_each(|note| notes(note));
        Ok(examples)
    };
    let all = side(path, Part::Train)?;
    let has_own = validation_path.is_empty() && has_validation(path)?;
    let validation_path = if has_own { path } else { validation_path };
    let (train, validation) = match validation_path.is_empty() {
        true => split_by_text(all, &text, *validation_fraction, recipe.run.seed)?,
        false => (all, side(validation_path, Part::Validation)?),
    };
    if validation.is_empty() {
        return Err(too_few(train.len() as u64, what));
    }
    say_copies(&train, &validation, what, &text, notes);
    Ok(Sides { train, validation })
}

/// Notes the examples (`what`) whose `text` occurs more than once, and those that are held out and
/// trained on too.
fn say_copies<T>(
    train: &[T],
    validation: &[T],
    what: &str,
    text: impl Fn(&T) -> String,
    notes: Notes<'_>,
) {
    let hash = |example: &T| -> [u8; 32] { Sha256::digest(text(example).trim()).into() };
    let trained: BTreeSet<_> = train.iter().map(hash).collect();
    let n_copies = train.len() - trained.len();
    if n_copies > 0 {
        let share = share(n_copies, train.len());
        notes(&format!("warning: {n_copies} {what} to learn from{share} are copies of others"));
    }
    let n_leaked = validation.iter().filter(|example| trained.contains(&hash(example))).count();
    if n_leaked > 0 {
        notes(&format!(
            "warning: {n_leaked} held-out {what}{} are also in the training data, so held-out \
             results are optimistic",
            share(n_leaked, validation.len())
        ));
    }
}

/// The error for `found` examples (`what`) if none of them can be held out.
fn too_few(found: u64, what: &str) -> Error {
    Error::Setting {
        faults: format!(
            "data.path holds {found} {what}, too few to hold some out; give data.validation_path \
             or more data"
        ),
    }
}
