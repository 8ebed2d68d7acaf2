//! Learning-rate curves as pure functions of the step.

use crate::recipe::ScheduleConfig;

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
        ScheduleConfig::Wsd { decay_steps, min_ratio, .. } => {
            let left = steps.saturating_sub(step).min(*decay_steps) as f32;
            let share = if *decay_steps == 0 { 1.0 } else { left / *decay_steps as f32 };
            min_ratio + (1.0 - min_ratio) * share
        }
    };
    lr * ratio
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_rises_to_the_peak_and_falls_to_the_floor() {
        let cosine = ScheduleConfig::Cosine { warmup_steps: 4, min_ratio: 0.1 };
        let at = |step| learning_rate(&cosine, 2.0, step, 104);
        assert_eq!((at(0), at(3), at(4)), (0.5, 2.0, 2.0));
        assert!((at(54) - 1.1).abs() < 1e-6 && (at(104) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn wsd_is_flat_until_the_decay() {
        let wsd = ScheduleConfig::Wsd { warmup_steps: 2, decay_steps: 10, min_ratio: 0.0 };
        let at = |step| learning_rate(&wsd, 1.0, step, 100);
        assert_eq!((at(0), at(1), at(50), at(90), at(95), at(99)), (0.5, 1.0, 1.0, 1.0, 0.5, 0.1));
    }
}
