//! What a run does when a step went wrong: continues, skips the step, returns to a checkpoint, or
//! ends with an error.

use lehr_tensor::Param;
use lehr_tensor::inplace::SquaredGradNorm;

use super::{Session, StepNumbers};
use crate::average::Average;
use crate::checkpoint::{self, Contents};
use crate::observe::Event;
use crate::recipe::WatchdogAction;
use crate::watchdog::Verdict;
use crate::{Error, Result, RunDir, WatchdogEvent, WatchdogKind};

impl Session<'_> {
    /// Checks what the watchdog needs, and makes the checkpoint that a rollback of the first steps
    /// returns to.
    pub(super) fn prepare_watchdog(&mut self) -> Result<()> {
        if !self.rolls_back() {
            return Ok(());
        }
        if self.dir.is_none() {
            let faults = "watchdog.action is rollback, expected another action, because this run \
                          has no directory for checkpoints";
            return Err(Error::Setting { faults: faults.to_owned() });
        }
        if self.state.step == 0 { self.save() } else { Ok(()) }
    }

    fn rolls_back(&self) -> bool {
        self.recipe.watchdog.action == WatchdogAction::Rollback
    }

    /// Returns the step of the checkpoint that a rollback returns to. It is the last one by
    /// schedule, because an interruption must not change where a run returns to.
    pub(super) fn rollback_step(&self) -> Option<u64> {
        let (step, every) = (self.state.step, self.recipe.checkpoint.every_steps);
        self.rolls_back().then(|| step - step.checked_rem(every).unwrap_or(0))
    }

    /// Decides about a step that has ended. `n_updated` is that of a step that is not finite.
    /// Returns its numbers if it counts, and `None` if the run returned to a checkpoint.
    pub(super) fn judge(
        &mut self,
        mut numbers: StepNumbers,
        n_updated: Option<usize>,
    ) -> Result<Option<StepNumbers>> {
        let is_finite = n_updated.is_none();
        let verdict = self.watchdog.judge(&mut self.state.watchdog, &numbers, is_finite);
        let loss = Some(numbers.loss).filter(|loss| loss.is_finite());
        match verdict {
            Verdict::Go => {}
            Verdict::Report(reason) => self.report(WatchdogKind::Spike, reason, loss)?,
            Verdict::Skip(reason) => {
                numbers.skipped = true;
                self.task.objective.model().params().clear_grads();
                self.report(WatchdogKind::Skipped, reason, loss)?;
            }
            Verdict::RollBack(reason) => {
                self.roll_back(reason, loss)?;
                return Ok(None);
            }
            Verdict::Stop(reason) => {
                return Err(match n_updated {
                    None => self.diverged(reason)?,
                    Some(n_updated) => self.not_finite(&numbers, n_updated)?,
                });
            }
        }
        Ok(Some(numbers))
    }

    fn report(&self, event: WatchdogKind, reason: String, loss: Option<f64>) -> Result<()> {
        let (step, attempt) = (self.state.step + 1, self.state.attempt() + 1);
        self.tell(&WatchdogEvent { step, attempt, event, reason, loss, to_step: None })
    }

    fn tell(&self, event: &WatchdogEvent) -> Result<()> {
        self.journal.watchdog(event)?;
        self.observer.event(&Event::Watchdog { event });
        Ok(())
    }

    /// Returns to the last checkpoint by schedule. The batches since then are passed over.
    ///
    /// A crash at any moment loses nothing: later checkpoints are removed first, so the run then
    /// continues from this one, meets the same spike and rolls back again.
    fn roll_back(&mut self, reason: String, loss: Option<f64>) -> Result<()> {
        let (Some(dir), Some(to)) = (self.dir, self.rollback_step()) else { return Ok(()) };
        let (step, attempt) = (self.state.step + 1, self.state.attempt() + 1);
        let path = dir.checkpoints().join(format!("step-{to}"));
        checkpoint::verify(&path)?;
        self.remove_later(dir, to)?;
        self.task.objective.model().params().clear_grads();
        let optimizer = &mut *self.stepper.optimizer;
        let mut state = checkpoint::restore(&path, self.task.objective.as_mut(), optimizer)?;
        self.average = Average::new(self.recipe.average, self.recipe.train.steps);
        self.average.restore(&path, self.task.objective.model().params(), to)?;
        state.elapsed_s = self.state.elapsed_s;
        state.inputs = self.state.inputs.take();
        state.watchdog.n_undone = attempt - to;
        state.watchdog.in_row = self.state.watchdog.in_row + 1;
        self.stepper.loss_scale = state.loss_scale;
        (self.state, self.saved_step) = (state, Some(to));
        self.journal.go_back(&self.state)?;
        self.pulse.made(self.state.step, self.state.attempt());
        let event = WatchdogKind::RolledBack;
        self.tell(&WatchdogEvent { step, attempt, event, reason, loss, to_step: Some(to) })
    }

    /// Removes the checkpoints of steps that are undone.
    fn remove_later(&mut self, dir: &RunDir, step: u64) -> Result<()> {
        for (_, path) in checkpoint::list(dir).into_iter().filter(|(saved, _)| *saved > step) {
            self.storage.remove_dir(&path).map_err(Error::io("removing", &path))?;
        }
        let folder = dir.checkpoints();
        self.storage.sync_dir(&folder).map_err(Error::io("syncing", &folder))
    }

    /// Returns the error of spikes that did not end, and saves the state before the step for study.
    fn diverged(&mut self, reason: String) -> Result<Error> {
        let (step, in_row) = (self.state.step, self.state.watchdog.in_row);
        let debug = self.save_for_study()?;
        Ok(Error::Diverged { step, reason, in_row, debug })
    }

    /// Returns the error of a step whose loss or gradient is not finite, and saves the state for
    /// study. That is the state before the step, except for the `n_updated` parameters that
    /// `optimizer.in_backward` had updated by then. `state.json` then says so.
    fn not_finite(&mut self, numbers: &StepNumbers, n_updated: usize) -> Result<Error> {
        self.state.params_ahead = n_updated;
        let (what, value) = match numbers.loss.is_finite() {
            false => ("the loss".to_owned(), numbers.loss),
            true => (format!("the gradient of `{}`", self.first_bad_gradient()), numbers.grad_norm),
        };
        let debug = self.save_for_study()?;
        Ok(Error::NotFinite { step: self.state.step, what, value, n_updated, debug })
    }

    fn save_for_study(&mut self) -> Result<Option<std::path::PathBuf>> {
        let debug = self.dir.map(|dir| dir.path().join(format!("debug-step-{}", self.state.step)));
        if let Some(folder) = &debug {
            let contents = Contents {
                objective: self.task.objective.as_ref(),
                optimizer: &*self.stepper.optimizer,
                state: &self.state,
                base: self.base.as_ref(),
                last_weights: &[],
            };
            checkpoint::save_at(self.storage, folder, &contents)?;
        }
        Ok(debug)
    }

    fn first_bad_gradient(&self) -> String {
        let finite = |grad| SquaredGradNorm::of(&[grad], &[])?.get().map(f64::is_finite);
        let is_finite = |grad| finite(grad).unwrap_or(false);
        let bad = |p: &&Param| p.grad().is_some_and(|grad| !is_finite(grad));
        let params = self.task.objective.model().params().params();
        params.iter().find(bad).map_or_else(|| "all".to_owned(), |p| p.name().to_owned())
    }
}
