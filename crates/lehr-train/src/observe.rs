//! What a run tells while it runs. Libraries never print: the command line shows these events.

use std::path::Path;

use crate::{Evaluation, Metrics};

/// Something worth showing.
#[derive(Debug)]
pub enum Event<'a> {
    /// The loop begins, perhaps not at step 0.
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
    /// Held-out data was looked at.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// What came out.
        evaluation: &'a Evaluation,
    },
    /// A text was generated.
    Sampled {
        /// After so many steps.
        step: u64,
        /// What was given.
        prompt: &'a str,
        /// What came.
        text: &'a str,
    },
    /// A checkpoint was written.
    Saved {
        /// Where.
        path: &'a Path,
    },
    /// A checkpoint could not be used on resume; an older one is.
    Skipped {
        /// Which.
        path: &'a Path,
        /// Why.
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
