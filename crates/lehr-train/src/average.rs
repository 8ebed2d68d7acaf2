//! Averages of weights over steps. Training continues with the weights of the last step; the
//! averaged ones are put into the model while it is evaluated, sampled from and saved.

use std::path::Path;

use lehr_model::io::Checkpoint;
use lehr_tensor::{Param, ParamStore, Tensor, inplace};

use crate::recipe::AverageConfig;
use crate::{Error, Result};

/// The file of a checkpoint with the weights of the last step, if its model has averaged ones.
pub(crate) const LAST_WEIGHTS: &str = "last_weights.safetensors";

/// The average of a run's trained weights. How many weights are in it follows from the step alone.
pub(crate) struct Average {
    config: AverageConfig,
    /// Steps of the run.
    steps: u64,
    /// The averages, in the order of the trained parameters; empty before the first weights.
    values: Vec<Tensor>,
}

/// The weights of the last step, while the model has the averaged ones. Empty if it has not.
pub(crate) type LastWeights = Vec<(String, Tensor)>;

impl Average {
    /// Creates the average for a run of `steps` steps, without weights.
    pub(crate) fn new(config: AverageConfig, steps: u64) -> Self {
        Self { config, steps, values: Vec::new() }
    }

    /// Returns the number of weights in the average after `step` steps.
    pub(crate) fn count(&self, step: u64) -> u64 {
        match self.config {
            AverageConfig::None => 0,
            AverageConfig::Ema { start_step, .. } => (step + 1).saturating_sub(start_step),
            AverageConfig::Tail { steps, every_steps } => {
                // Weights count if so many steps follow: 0, every_steps, … below `steps`.
                let follow = self.steps.saturating_sub(step);
                let all = steps.div_ceil(every_steps);
                all.saturating_sub(follow.div_ceil(every_steps))
            }
        }
    }

    /// Adds the weights after `step` steps, if they count.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub(crate) fn after_step(&mut self, params: &ParamStore, step: u64) -> Result<()> {
        let n = self.count(step);
        if n == self.count(step.saturating_sub(1)) {
            return Ok(());
        }
        if self.values.is_empty() {
            let copy = |p: &Param| Ok(p.tensor_f32().detach().duplicate()?);
            self.values = trained(params).map(copy).collect::<Result<_>>()?;
            return Ok(());
        }
        let weight = match self.config {
            AverageConfig::Ema { decay, .. } => 1.0 - decay,
            AverageConfig::None | AverageConfig::Tail { .. } => (1.0 / n as f64) as f32,
        };
        for (value, param) in self.values.iter_mut().zip(trained(params)) {
            inplace::lerp(value, &param.tensor_f32().detach(), weight)?;
        }
        Ok(())
    }

    /// Puts the averages into the model, if there are any, and returns the weights that it had.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub(crate) fn put_in(&self, params: &ParamStore) -> Result<LastWeights> {
        let mut last = LastWeights::new();
        for (value, param) in self.values.iter().zip(trained(params)) {
            last.push((param.name().to_owned(), param.tensor_f32().detach()));
            param.set(value)?;
        }
        Ok(last)
    }

    /// Puts the weights of the last step back into the model.
    ///
    /// # Errors
    /// If memory runs out or a device fails.
    pub(crate) fn put_back(params: &ParamStore, last: LastWeights) -> Result<()> {
        if last.is_empty() {
            return Ok(());
        }
        for ((_, value), param) in last.into_iter().zip(trained(params)) {
            param.set(&value)?;
        }
        Ok(())
    }

    /// Restores the state after `step` steps, after the weights of the checkpoint `dir` were loaded
    /// into the model: they are the averages.
    ///
    /// # Errors
    /// If the checkpoint lacks the weights of the last step.
    pub(crate) fn restore(&mut self, dir: &Path, params: &ParamStore, step: u64) -> Result<()> {
        if self.count(step) == 0 {
            return Ok(());
        }
        let path = dir.join(LAST_WEIGHTS);
        if !path.is_file() {
            let reason = format!("it has no {LAST_WEIGHTS}, though weights are averaged");
            return Err(Error::Checkpoint { path: dir.to_owned(), reason });
        }
        let last = Checkpoint::open(&path)?;
        self.values = trained(params).map(|param| param.tensor_f32().detach()).collect();
        for param in trained(params) {
            param.set(&last.tensor(param.name(), param.shape())?)?;
        }
        Ok(())
    }
}

fn trained(params: &ParamStore) -> impl Iterator<Item = &Param> {
    params.params().iter().filter(|param| param.is_trainable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_weights_are_averaged_follows_from_the_step() {
        let counts = |config| {
            let average = Average::new(config, 10);
            (0..=10).map(|step| average.count(step)).collect::<Vec<_>>()
        };
        assert_eq!(counts(AverageConfig::None), [0; 11]);
        let ema = AverageConfig::Ema { decay: 0.9, start_step: 4 };
        assert_eq!(counts(ema), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]);
        let tail = AverageConfig::Tail { steps: 5, every_steps: 1 };
        assert_eq!(counts(tail), [0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
        // The weights after steps 4, 7 and 10.
        let sparse = AverageConfig::Tail { steps: 8, every_steps: 3 };
        assert_eq!(counts(sparse), [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
        let whole = AverageConfig::Tail { steps: 10, every_steps: 10 };
        assert_eq!(counts(whole), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
