//! Schedules: the learning rate and the size of a step, as pure functions of the recipe and the
//! number of the step.

mod stages;

pub use stages::{Stage, Stages};

use crate::Recipe;
use crate::recipe::{BatchLr, DecayShape, ScheduleConfig};

/// Returns the learning rate of `step` (from 0), by the curve of `recipe` and the tokens of the
/// step.
#[must_use]
pub fn learning_rate_of(recipe: &Recipe, stages: &Stages, step: u64) -> f32 {
    let rate = learning_rate(&recipe.schedule, recipe.optimizer.lr, step, recipe.train.steps);
    match recipe.train.batch_lr {
        BatchLr::None => rate,
        BatchLr::Sqrt => {
            let last = stages.at(recipe.train.steps - 1).tokens;
            rate * (stages.at(step).tokens as f32 / last as f32).sqrt()
        }
    }
}

/// Returns the learning rate of `step` (from 0) of `steps`, for the peak `lr`.
///
/// Warm-up rises linearly: step s has the rate `lr (s + 1) / warmup_steps`.
#[must_use]
pub fn learning_rate(schedule: &ScheduleConfig, lr: f32, step: u64, steps: u64) -> f32 {
    let warmup_steps = match schedule {
        ScheduleConfig::Cosine { warmup_steps, .. } | ScheduleConfig::Wsd { warmup_steps, .. } => {
            *warmup_steps
        }
    };
    if step < warmup_steps {
        return lr * (step + 1) as f32 / warmup_steps as f32;
    }
    let ratio = match schedule {
        ScheduleConfig::Cosine { min_ratio, .. } => {
            let done = (step - warmup_steps) as f32 / (steps - warmup_steps).max(1) as f32;
            let cosine = 0.5 * (1.0 + (std::f32::consts::PI * done.min(1.0)).cos());
            min_ratio + (1.0 - min_ratio) * cosine
        }
        ScheduleConfig::Wsd { decay_steps, min_ratio, decay_shape, .. } => {
            let left = steps.saturating_sub(step).min(*decay_steps) as f32;
            let left = if *decay_steps == 0 { 1.0 } else { left / *decay_steps as f32 };
            let share = match decay_shape {
                DecayShape::Linear => left,
                DecayShape::OneMinusSqrt => 1.0 - (1.0 - left).sqrt(),
            };
            min_ratio + (1.0 - min_ratio) * share
        }
    };
    lr * ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::BatchStage;

    #[test]
    fn cosine_rises_to_the_peak_and_falls_to_the_floor() {
        let cosine = ScheduleConfig::Cosine { warmup_steps: 4, min_ratio: 0.1 };
        let at = |step| learning_rate(&cosine, 2.0, step, 104);
        assert_eq!((at(0), at(3), at(4)), (0.5, 2.0, 2.0));
        assert!((at(54) - 1.1).abs() < 1e-6 && (at(104) - 0.2).abs() < 1e-6);
    }

    fn wsd(decay_shape: DecayShape, min_ratio: f32) -> ScheduleConfig {
        ScheduleConfig::Wsd { warmup_steps: 2, decay_steps: 10, min_ratio, decay_shape }
    }

    #[test]
    fn wsd_is_flat_until_the_decay() {
        let wsd = wsd(DecayShape::Linear, 0.0);
        let at = |step| learning_rate(&wsd, 1.0, step, 100);
        assert_eq!((at(0), at(1), at(50), at(90), at(95), at(99)), (0.5, 1.0, 1.0, 1.0, 0.5, 0.1));
    }

    #[test]
    fn the_decay_may_fall_fast_at_first_and_ends_at_its_floor() {
        let wsd = wsd(DecayShape::OneMinusSqrt, 0.2);
        let at = |step| learning_rate(&wsd, 1.0, step, 100);
        // A share of 0.1 and of 0.4 of the decay is done.
        let want = |done: f32| 0.2 + 0.8 * (1.0 - done.sqrt());
        assert_eq!((at(50), at(90)), (1.0, 1.0));
        for (step, done) in [(91, 0.1), (94, 0.4), (99, 0.9)] {
            assert!((at(step) - want(done)).abs() < 1e-6, "{step}: {}", at(step));
        }
        assert!((at(100) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn the_rate_follows_the_root_of_the_tokens_of_a_step() {
        let mut recipe = Recipe::base();
        recipe.optimizer.lr = 2.0;
        recipe.schedule = ScheduleConfig::Cosine { warmup_steps: 0, min_ratio: 1.0 };
        let train = &mut recipe.train;
        (train.steps, train.batch_size, train.seq_len) = (8, 4, 16);
        train.batch_stages = [16, 64].map(|tokens| BatchStage { share: 0.5, tokens }).to_vec();
        let rates = |recipe: &Recipe| {
            let stages = Stages::new(&recipe.train);
            [0, 3, 4, 7].map(|step| learning_rate_of(recipe, &stages, step))
        };
        assert_eq!(rates(&recipe), [2.0; 4]);
        recipe.train.batch_lr = BatchLr::Sqrt;
        assert_eq!(rates(&recipe), [1.0, 1.0, 2.0, 2.0]);
    }
}
