//! Loss scaling, without which gradients in f16 vanish.

use serde::{Deserialize, Serialize};

/// What the loss is multiplied by before backward, and gradients divided by after. The smallest f16
/// above zero is 6e-8, and the gradient of a token's logits in a step of 65,536 tokens is 1.5e-5 at
/// most: without the factor most of them would be zero.
///
/// The factor is a power of two, so that it changes no digit of what stays in range. It is halved
/// when a gradient overflows, and the step is made again; it is doubled after a while without that
/// (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor.
    pub factor: f32,
    /// Steps since it last changed.
    pub n_steps: u32,
}

impl LossScale {
    /// After so many steps without an overflow the factor is doubled.
    const STEPS: u32 = 1000;
    const MAX: f32 = 16_777_216.0;

    /// At the start of a run.
    pub const START: Self = Self { factor: 65_536.0, n_steps: 0 };

    /// After a step in which nothing overflowed.
    #[must_use]
    pub fn after_step(self) -> Self {
        match self.n_steps + 1 < Self::STEPS || self.factor >= Self::MAX {
            true => Self { n_steps: self.n_steps.saturating_add(1), ..self },
            false => Self { factor: 2.0 * self.factor, n_steps: 0 },
        }
    }

    /// After an overflow of the gradient; `None` if no factor would help, because it overflows
    /// without one.
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
