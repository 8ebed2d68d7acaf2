//! Events of a run. Libraries never print; the command line shows these events.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::{Evaluation, Metrics, WatchdogEvent};

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
    /// The watchdog found something.
    Watchdog {
        /// What it found and did.
        event: &'a WatchdogEvent,
    },
    /// A damaged checkpoint was skipped on resume, in favour of an older one.
    Skipped {
        /// Its folder.
        path: &'a Path,
        /// What is damaged.
        reason: &'a str,
    },
}

/// Receives the events of a run, one at a time. Those of stalls come from another thread.
pub trait Observer: Send {
    /// Called for each event, in order.
    fn event(&mut self, event: &Event<'_>);
}

/// Ignores all events.
pub struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: &Event<'_>) {}
}

/// An observer that the threads of a run share.
pub(crate) struct Shared<'a>(Mutex<&'a mut dyn Observer>);

impl<'a> Shared<'a> {
    pub(crate) fn new(observer: &'a mut dyn Observer) -> Self {
        Self(Mutex::new(observer))
    }

    pub(crate) fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).event(event);
    }
}
