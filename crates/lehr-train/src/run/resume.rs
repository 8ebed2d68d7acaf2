//! What a run does before its first step.

use std::path::Path;

use lehr_model::io::{Scrutiny, newest_checkpoint};

use super::{Journal, Session, checkpoint};
use crate::inputs::refuse;
use crate::observe::Event;
use crate::{Inputs, Result, RunDir};

impl Session<'_> {
    /// Checks all sample prompts now, because a bad one would end the run at its first sample.
    pub(super) fn check_prompts(&self) -> Result<()> {
        let prompts = &self.recipe.sample.prompts;
        prompts.iter().try_for_each(|prompt| self.task.objective.check_prompt(prompt))
    }

    /// Restores the newest intact checkpoint and removes the log lines after it.
    pub(super) fn resume(&mut self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        let observer = self.observer;
        let mut on_damaged = |path: &Path, error: &lehr_model::Error| {
            observer.event(&Event::Skipped { path, reason: &error.to_string() });
        };
        let newest = newest_checkpoint(dir.path(), Scrutiny::Hashes, &mut on_damaged);
        let inputs = dir.inputs(self.recipe)?.with_objective(self.task.objective.as_ref());
        if let Some((step, path)) = newest {
            self.compare_inputs(dir, checkpoint::read_state(&path)?.inputs, &inputs)?;
            let optimizer = &mut *self.stepper.optimizer;
            self.state = checkpoint::restore(&path, self.task.objective.as_mut(), optimizer)?;
            let params = self.task.objective.model().params();
            self.average.restore(&path, params, self.state.step)?;
            self.saved_step = Some(step);
        }
        self.state.inputs = Some(inputs);
        self.journal = Journal::open(self.recipe, dir, &self.state)?;
        Ok(())
    }

    /// Compares the inputs of the checkpoint with those of now. Refuses changes, unless the user
    /// accepted them.
    fn compare_inputs(&mut self, dir: &RunDir, saved: Option<Inputs>, now: &Inputs) -> Result<()> {
        let Some(saved) = saved else {
            let text = "the checkpoint does not name its data, so it cannot be compared with the \
                        present data; an earlier version saved it";
            self.observer.event(&Event::Warning { text });
            return Ok(());
        };
        let changes = saved.changes(now);
        refuse(dir, changes.clone())?;
        for change in changes {
            let text = format!("accepted, though changed since the checkpoint: {}", change.text);
            self.observer.event(&Event::Warning { text: &text });
        }
        Ok(())
    }
}
