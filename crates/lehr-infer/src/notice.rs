//! Notices about a model that is being opened.
//!
//! Libraries do not print, and nearly every function opens models. So notices go to one handler of
//! the process, which the command line sets.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A notice for the user.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A damaged checkpoint of a run directory was skipped, in favour of an older one.
    Damaged {
        /// Its folder.
        path: &'a Path,
        /// What is damaged.
        error: &'a lehr_model::Error,
    },
    /// A large checkpoint is hashed, which takes seconds.
    Hashing {
        /// Its folder.
        path: &'a Path,
        /// The size of its files.
        bytes: u64,
    },
}

impl std::fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged { path, error } => write!(
                f,
                "passing over the damaged checkpoint {}: {error}; an older one is used if there is \
                 one",
                path.display()
            ),
            Self::Hashing { path, bytes } => write!(
                f,
                "hashing {:.1} GB of {}; remembered until a file changes, for a day at most",
                *bytes as f64 / 1e9,
                path.display()
            ),
        }
    }
}

type Handler = Box<dyn Fn(&Notice<'_>) + Send + Sync>;

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Sets the handler of the process for notices. Only the first call has an effect.
pub fn on_notice(handler: impl Fn(&Notice<'_>) + Send + Sync + 'static) {
    let _ = HANDLER.set(Box::new(handler));
}

/// Reports a notice, once per process: a command may open the same model several times.
pub(crate) fn tell(notice: &Notice<'_>) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(handler) = HANDLER.get() else { return };
    let is_new = TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(notice.to_string());
    if is_new {
        handler(notice);
    }
}
