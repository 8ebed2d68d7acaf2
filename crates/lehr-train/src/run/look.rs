//! Evaluations, samples and checkpoints of a run, all with the averaged weights if there are any.

use super::Session;
use crate::average::{Average, LastWeights};
use crate::checkpoint::{self, Contents, Keep};
use crate::observe::Event;
use crate::watchdog::stall::Phase;
use crate::{Error, Evaluation, Result, evaluate};

impl Session<'_> {
    /// Calls `body` while the model has the averaged weights, if the recipe asks for an average,
    /// with the weights of the last step.
    fn averaged<T>(
        &mut self,
        body: impl FnOnce(&mut Self, &LastWeights) -> Result<T>,
    ) -> Result<T> {
        let last = self.average.put_in(self.task.objective.model().params())?;
        let done = body(self, &last);
        Average::put_back(self.task.objective.model().params(), last)?;
        done
    }

    pub(super) fn evaluate(&mut self) -> Result<Evaluation> {
        self.pulse.enter(Phase::Evaluating);
        self.averaged(|session, _| session.evaluate_model())
    }

    fn evaluate_model(&mut self) -> Result<Evaluation> {
        let (objective, loader) = (self.task.objective.as_ref(), self.task.validation.as_ref());
        let evaluation = evaluate(objective, loader, self.recipe.eval.batches_max)?;
        let step = self.state.step;
        self.observer.event(&Event::Evaluated { step, evaluation: &evaluation });
        self.evaluation = Some(evaluation.clone());
        Ok(evaluation)
    }

    pub(super) fn sample(&mut self) -> Result<()> {
        self.pulse.enter(Phase::Sampling);
        self.averaged(|session, _| session.sample_model())
    }

    fn sample_model(&mut self) -> Result<()> {
        let config = &self.recipe.sample;
        let (step, seed) = (self.state.step, self.recipe.run.seed);
        for prompt in &config.prompts {
            let objective = &self.task.objective;
            let text = objective.sample(prompt, config.max_tokens, config.temperature, seed)?;
            let Some(text) = text else { continue };
            self.observer.event(&Event::Sampled { step, prompt, text: &text });
            self.journal.sample(step, prompt, &text)?;
        }
        Ok(())
    }

    pub(super) fn save(&mut self) -> Result<()> {
        let Some(dir) = self.dir else { return Ok(()) };
        if self.saved_step == Some(self.state.step) {
            return Ok(());
        }
        self.pulse.enter(Phase::Saving);
        // Lines up to the checkpoint are not written again after a power cut.
        self.journal.sync()?;
        self.storage.sync_dir(dir.path()).map_err(Error::io("syncing", dir.path()))?;
        let keep = Keep { newest: self.recipe.checkpoint.keep, also: self.rollback_step() };
        let path = self.averaged(|session, last_weights| {
            let Self { task, storage, stepper, state, base, .. } = session;
            let (objective, optimizer) = (task.objective.as_ref(), &*stepper.optimizer);
            let base = base.as_ref();
            let contents = Contents { objective, optimizer, state, base, last_weights };
            checkpoint::save(&mut **storage, dir, &contents, keep)
        })?;
        self.saved_step = Some(self.state.step);
        self.observer.event(&Event::Saved { path: &path });
        Ok(())
    }
}
