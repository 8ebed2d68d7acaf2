//! Errors of training.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::InputChange;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error names what was being done, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Tensor(#[from] lehr_tensor::Error),
    /// A model or its files failed.
    #[error(transparent)]
    Model(#[from] lehr_model::Error),
    /// The data failed.
    #[error(transparent)]
    Data(#[from] lehr_data::Error),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] lehr_tokenizer::Error),
    /// Opening or sampling a model failed.
    #[error(transparent)]
    Infer(#[from] lehr_infer::Error),
    /// A file could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A recipe cannot be parsed.
    #[error("reading the recipe {origin}: {reason}")]
    Recipe {
        /// The file, or where else the recipe came from.
        origin: String,
        /// What is wrong.
        reason: String,
        /// Advice for the user.
        hint: Option<String>,
    },
    /// A setting of a recipe is impossible.
    #[error("recipe: {faults}")]
    Setting {
        /// All faults, one per line.
        faults: String,
    },
    /// Finished runs cannot be used for a law of loss.
    #[error("predicting a loss: {found}")]
    Law {
        /// What is wrong.
        found: String,
        /// Advice for the user.
        hint: String,
    },
    /// A run directory is in use by another recipe.
    #[error(
        "the run directory {} holds a run of another recipe: {}",
        path.display(), few(differs, "; ")
    )]
    OtherRun {
        /// The directory.
        path: PathBuf,
        /// The settings in which the recipes differ, one per item.
        differs: Vec<String>,
    },
    /// A run directory is a folder that the run reads.
    #[error(
        "the run directory {} lies in the folder of {what}, {}, expected a folder of its own",
        path.display(), used.display()
    )]
    RunDirInUse {
        /// The directory.
        path: PathBuf,
        /// What is read from the folder.
        what: &'static str,
        /// The folder.
        used: PathBuf,
    },
    /// The data has labels that the loaded classifier's head does not know.
    #[error(
        "fine-tuning the classifier {}: the data has the labels {}, its head knows {}",
        path.display(), quoted(unknown), quoted(known)
    )]
    OtherLabels {
        /// The model.
        path: PathBuf,
        /// The labels of the data that the head does not know.
        unknown: Vec<String>,
        /// The labels of the head.
        known: Vec<String>,
    },
    /// A run directory is in use by another process.
    #[error("the run directory {} is in use: {}", path.display(), holder(*pid, host))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process; 0 if it is not known.
        pid: u32,
        /// The machine of the process.
        host: String,
    },
    /// The inputs of a run have changed since its checkpoint.
    #[error("continuing the run {}: its inputs have changed since the checkpoint\n{}",
        path.display(), listed(changes))]
    InputsChanged {
        /// The run directory.
        path: PathBuf,
        /// The changes.
        changes: Vec<InputChange>,
    },
    /// An input of a run is missing.
    #[error("looking for the {what} of the run {}: there is no {}", run.display(), or(places))]
    InputMissing {
        /// The run directory.
        run: PathBuf,
        /// The kind of the input.
        what: &'static str,
        /// The places where it was looked for.
        places: Vec<PathBuf>,
    },
    /// A checkpoint is damaged.
    #[error("reading the checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss or a gradient is not finite.
    #[error("step {step}: {what} is {value}; {}", updated(*n_updated))]
    NotFinite {
        /// The step.
        step: u64,
        /// The loss, or the gradient of a parameter, which is named.
        what: String,
        /// The value found.
        value: f64,
        /// Number of parameters that `optimizer.in_backward` had updated by then.
        n_updated: usize,
        /// The folder in which the state was saved.
        debug: Option<PathBuf>,
    },
    /// Skipping steps or returning to checkpoints did not end the loss spikes.
    #[error("step {step}: {reason}, after {in_row} skips or rollbacks in a row")]
    Diverged {
        /// The number of steps made.
        step: u64,
        /// What was found last.
        reason: String,
        /// How often the watchdog had acted by then.
        in_row: u32,
        /// The folder in which the state was saved.
        debug: Option<PathBuf>,
    },
}

/// Names the process that uses a run directory.
fn holder(pid: u32, host: &str) -> String {
    match (pid, host) {
        (0, _) => "another process holds its lock".to_owned(),
        (pid, "") => format!("process {pid} holds its lock"),
        (pid, host) => format!("process {pid} on {host} holds its lock"),
    }
}

fn listed(changes: &[InputChange]) -> String {
    changes.iter().map(|change| format!("  {}", change.text)).collect::<Vec<_>>().join("\n")
}

fn or(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" or ")
}

/// Lists names in quotes, the first few of many.
fn quoted(names: &[String]) -> String {
    few(&names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>(), ", ")
}

/// Lists the first few of many items.
fn few(items: &[String], separator: &str) -> String {
    const SHOWN: usize = 10;
    let shown = items[..items.len().min(SHOWN)].join(separator);
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        n => format!("{shown} and {n} more"),
    }
}

/// Says which weights a failed step has changed.
fn updated(n_updated: usize) -> String {
    match n_updated {
        0 => "no weight was updated".to_owned(),
        n => format!(
            "{n} parameters were updated before it was found, because optimizer.in_backward is true"
        ),
    }
}

/// Returns advice for a file that could not be read or written.
fn io_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some space; what was saved before is whole, and the same command continues from \
             it"
        }
        ErrorKind::NotFound => "check the path",
        _ => "check that the path is right and may be read and written",
    }
}

fn in_use_hint(pid: u32) -> String {
    let stop = match pid {
        0 => String::new(),
        pid => format!(" or stop it with `kill {pid}`, which saves a checkpoint first,"),
    };
    format!("wait until it ends,{stop} or choose another directory with --out")
}

fn changed_hint(changes: &[InputChange]) -> &'static str {
    if changes.iter().all(|change| change.is_acceptable) {
        "put the files back, or continue with the changed ones by --accept-changed-data, or start \
         a new run in another directory with --out"
    } else {
        "put the files back, or start a new run in another directory with --out: with another \
         tokenizer or other labels the weights would mean something else"
    }
}

impl Error {
    /// Returns advice for the user, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Infer(error) => error.hint(),
            Self::Recipe { hint, .. } => Some(hint.clone().unwrap_or_else(|| {
                "a recipe names every setting; `lehr pretrain --data FILE --dry-run` prints a \
                 whole one"
                    .to_owned()
            })),
            Self::Law { hint, .. } => Some(hint.clone()),
            Self::Io { source, .. } => Some(io_hint(source.kind()).to_owned()),
            Self::Setting { .. } => Some(
                "change it in the recipe, or for one run with --set section.key=value".to_owned(),
            ),
            Self::Checkpoint { .. } => {
                Some("use an older checkpoint; --resume finds the newest whole one".to_owned())
            }
            Self::OtherLabels { .. } => Some(
                "start a new head for the labels of the data with --new-head (train.new_head = \
                 true), or correct the labels"
                    .to_owned(),
            ),
            Self::RunDirInUse { .. } => {
                Some("choose another directory with --out (run.dir)".to_owned())
            }
            Self::OtherRun { .. } => Some(
                "choose another directory with --out, or remove this one; to continue the run that \
                 is there: --resume"
                    .to_owned(),
            ),
            Self::InUse { pid, .. } => Some(in_use_hint(*pid)),
            Self::InputsChanged { changes, .. } => Some(changed_hint(changes).to_owned()),
            Self::InputMissing { .. } => Some(
                "put it back, or continue in the folder in which the run was started; relative \
                 paths of a recipe start there"
                    .to_owned(),
            ),
            Self::Diverged { debug, .. } => {
                let saved = debug.as_ref().map(|d| format!("; the state is in {}", d.display()));
                let advice = "lower optimizer.lr, look at the data, or raise watchdog.threshold";
                Some(format!("{advice}{}", saved.unwrap_or_default()))
            }
            Self::NotFinite { debug, n_updated, .. } => {
                let state = match n_updated {
                    0 => "the state before the step",
                    _ => "the partly updated state",
                };
                let saved = debug.as_ref().map(|d| format!("; {state} is in {}", d.display()));
                let advice = "lower optimizer.lr, lengthen schedule.warmup_steps or clip harder";
                Some(format!("{advice}{}", saved.unwrap_or_default()))
            }
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
