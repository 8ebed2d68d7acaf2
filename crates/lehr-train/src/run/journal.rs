//! The files that a run writes besides checkpoints: metrics, samples, event files.

use serde_json::json;

use crate::tensorboard::EventFiles;
use crate::{Metrics, Recipe, Result, RunDir, TrainState, WatchdogEvent, metrics};

/// The files of a run. Without a directory nothing is written.
#[derive(Default)]
pub(super) struct Journal<'a> {
    dir: Option<&'a RunDir>,
    event_files: Option<EventFiles>,
}

impl<'a> Journal<'a> {
    /// Opens the files of a run that continues from `state`, and removes what was written after it.
    pub(super) fn open(recipe: &Recipe, dir: &'a RunDir, state: &TrainState) -> Result<Self> {
        let open = || EventFiles::open(&dir.tensorboard(), state.step, &recipe.to_toml());
        let event_files = recipe.run.tensorboard.then(open).transpose()?;
        let journal = Self { dir: Some(dir), event_files };
        journal.truncate(state)?;
        Ok(journal)
    }

    /// Removes what was written after `state`, to which the run returned.
    pub(super) fn go_back(&mut self, state: &TrainState) -> Result<()> {
        if let Some(files) = &mut self.event_files {
            files.go_back(state.step)?;
        }
        self.truncate(state)
    }

    fn truncate(&self, state: &TrainState) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        metrics::truncate(&dir.metrics(), state.step, state.attempt())?;
        metrics::truncate(&dir.samples(), state.step, state.attempt())
    }

    pub(super) fn step(&mut self, line: &Metrics) -> Result<()> {
        if let Some(files) = &mut self.event_files {
            files.step(line)?;
        }
        self.dir.map_or(Ok(()), |dir| metrics::append(&dir.metrics(), line))
    }

    pub(super) fn sample(&mut self, step: u64, prompt: &str, text: &str) -> Result<()> {
        if let Some(files) = &mut self.event_files {
            files.sample(step, prompt, text)?;
        }
        let line = json!({ "step": step, "prompt": prompt, "text": text });
        self.dir.map_or(Ok(()), |dir| metrics::append(&dir.samples(), &line))
    }

    pub(super) fn watchdog(&self, event: &WatchdogEvent) -> Result<()> {
        self.dir.map_or(Ok(()), |dir| metrics::append(&dir.metrics(), event))
    }

    /// Makes what was written durable, so that lines up to a checkpoint survive a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        self.event_files.as_ref().map_or(Ok(()), EventFiles::sync)?;
        metrics::sync(&dir.metrics())?;
        metrics::sync(&dir.samples())
    }
}
