//! Events of a run. Libraries never print; the command line shows these events.

use std::path::Path;

use crate::{Evaluation, Metrics};

/// An event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The loop starts, after step 0 or after a checkpoint.
    Started {
        /// Steps already made.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Parameters.
        n_params: usize,
    },
    /// A step was made.
    Stepped {
        /// Its numbers.
        metrics: &'a Metrics,
        /// Steps in all.
        steps: u64,
    },
    /// The model was evaluated on held-out data.
    Evaluated {
        /// Number of steps made.
        step: u64,
        /// The result.
        evaluation: &'a Evaluation,
    },
    /// A text was generated.
    Sampled {
        /// Number of steps made.
        step: u64,
        /// The prompt.
        prompt: &'a str,
        /// The generated text.
        text: &'a str,
    },
    /// A checkpoint was written.
    Saved {
        /// Its folder.
        path: &'a Path,
    },
    /// A warning about the run as a whole.
    Warning {
        /// The warning.
        text: &'a str,
    },
    /// A damaged checkpoint was skipped on resume, in favour of an older one.
    Skipped {
        /// Its folder.
        path: &'a Path,
        /// What is damaged.
        reason: &'a str,
    },
}

/// Receives the events of a run.
pub trait Observer {
    /// Called for each event, in order.
    fn event(&mut self, event: &Event<'_>);
}

/// Ignores all events.
pub struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: &Event<'_>) {}
}
