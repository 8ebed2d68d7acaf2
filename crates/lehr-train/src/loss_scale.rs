//! Loss scaling, which keeps small gradients from underflowing in f16.

use serde::{Deserialize, Serialize};

/// The factor by which the loss is multiplied before backward and gradients are divided after it.
/// The smallest positive f16 is 6e-8. In a step of 65,536 tokens, the gradient of a token's logits
/// is at most 1.5e-5. Without the factor, most of these gradients would be zero.
///
/// The factor is a power of two, so it does not round values that stay in range. It is halved when
/// a gradient overflows, and the step is repeated. After a number of steps without overflow it is
/// doubled (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor.
    pub factor: f32,
    /// Steps since it last changed.
    pub n_steps: u32,
}

impl LossScale {
    /// Number of steps without overflow after which the factor is doubled.
    const STEPS: u32 = 1000;
    const MAX: f32 = 16_777_216.0;

    /// The value at the start of a run.
    pub const START: Self = Self { factor: 65_536.0, n_steps: 0 };

    /// Returns the value after a step without overflow.
    #[must_use]
    pub fn after_step(self) -> Self {
        match self.n_steps.saturating_add(1) < Self::STEPS || self.factor >= Self::MAX {
            true => Self { n_steps: self.n_steps.saturating_add(1), ..self },
            false => Self { factor: 2.0 * self.factor, n_steps: 0 },
        }
    }

    /// Returns the value after an overflow; `None` if the gradient overflows even with a factor of
    /// 1.
    #[must_use]
    pub fn after_overflow(self) -> Option<Self> {
        (self.factor > 1.0).then_some(Self { factor: 0.5 * self.factor, n_steps: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_when_something_overflows_and_doubles_when_nothing_does() {
        let mut scale = LossScale::START;
        for _ in 0..999 {
            scale = scale.after_step();
        }
        assert_eq!(scale.factor, 65_536.0);
        assert_eq!(scale.after_step(), LossScale { factor: 131_072.0, n_steps: 0 });
        assert_eq!(scale.after_overflow(), Some(LossScale { factor: 32_768.0, n_steps: 0 }));
        assert_eq!(LossScale { factor: 1.0, n_steps: 3 }.after_overflow(), None);
        let most = LossScale { factor: LossScale::MAX, n_steps: u32::MAX };
        assert_eq!(most.after_step(), most);
    }
}
