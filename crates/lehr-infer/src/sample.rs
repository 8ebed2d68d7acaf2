//! Choosing the next token.

use lehr_tensor::Philox;

use crate::{Error, Result};

/// How the next token is chosen. Filters apply in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens already in the text are divided by this if positive, multiplied if
    /// negative (Keskar et al. 2019); 1 = off.
    pub repetition_penalty: f32,
    /// Logits are divided by this; 0 = always the most likely token.
    pub temperature: f32,
    /// Keep the most likely `top_k`; 0 = all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with this probability (Holtzman et al. 2020);
    /// 1 = all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 = all.
    pub min_p: f32,
    /// Names the stream of random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        repetition_penalty: 1.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    };

    /// An error if a setting is out of range.
    ///
    /// # Errors
    /// The first setting that is.
    pub fn validate(&self) -> Result<()> {
        let check = |name, value: f32, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::Sampling { name, value: f64::from(value), expected }),
        };
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "0 or more")?;
        let p = self.top_p;
        check("top_p", p, p > 0.0 && p <= 1.0, "more than 0, at most 1")?;
        let p = self.min_p;
        check("min_p", p, (0.0..=1.0).contains(&p), "0 to 1")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "more than 0")
    }
}

/// Draws tokens. The n-th draw depends on the seed and n alone.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.validate()?;
        Ok(Self { sampling, n_drawn: 0 })
    }

    /// Chooses from `logits [V]`; `history` are the tokens of the text so far. Ties go to the lower
    /// id. Logits are changed.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn pick(&mut self, logits: &mut [f32], history: &[i32]) -> u32 {
        assert!(!logits.is_empty(), "a vocabulary has at least one token");
        let s = self.sampling;
        penalise(logits, history, s.repetition_penalty);
        if s.temperature == 0.0 || s.top_k == 1 {
            return best(logits);
        }
        // Most likely first; ties by id, so that the order is one.
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let falling =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if s.top_k > 0 && s.top_k < order.len() {
            order.select_nth_unstable_by(s.top_k - 1, falling);
            order.truncate(s.top_k);
        }
        order.sort_unstable_by(falling);
        let top = f64::from(logits[order[0] as usize]);
        let weight =
            |id: &u32| ((f64::from(logits[*id as usize]) - top) / f64::from(s.temperature)).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let kept = keep(&weights, f64::from(s.top_p), f64::from(s.min_p));
        let total: f64 = weights[..kept].iter().sum();
        let draw = f64::from(Philox::new(s.seed, 0x5A4D).uniform(self.n_drawn)) * total;
        self.n_drawn += 1;
        let mut sum = 0.0;
        for (id, weight) in order[..kept].iter().zip(&weights) {
            sum += weight;
            if draw < sum {
                return *id;
            }
        }
        order[kept - 1]
    }
}

/// How many of the falling `weights` (the first is 1) pass `top_p` and `min_p`; at least one.
fn keep(weights: &[f64], top_p: f64, min_p: f64) -> usize {
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        if i > 0 && (*weight < min_p || (top_p < 1.0 && sum >= top_p * total)) {
            return i;
        }
        sum += weight;
    }
    weights.len()
}

fn penalise(logits: &mut [f32], history: &[i32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<i32> = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = usize::try_from(id).ok().and_then(|id| logits.get_mut(id)) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn draw(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..n).map(|_| sampler.pick(&mut LOGITS.clone(), &[])).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_likely() {
        assert_eq!(draw(Sampling::GREEDY, 3), [1, 1, 1]);
    }

    #[test]
    fn filters_keep_what_they_promise() {
        let hot = Sampling { temperature: 1.0, seed: 3, ..Sampling::GREEDY };
        let within = |sampling, allowed: &[u32]| {
            let drawn = draw(sampling, 300);
            assert!(drawn.iter().all(|id| allowed.contains(id)), "{sampling:?}");
            assert!(allowed.iter().all(|id| drawn.contains(id)), "{sampling:?}");
        };
        within(Sampling { top_k: 2, ..hot }, &[1, 3]);
        within(Sampling { top_k: 3, ..hot }, &[1, 2, 3]);
        within(Sampling { top_p: 0.5, ..hot }, &[1, 3]);
        within(Sampling { min_p: 0.3, ..hot }, &[1, 2, 3]);
        within(Sampling { temperature: 3.0, ..hot }, &[0, 1, 2, 3, 4]);
    }

    #[test]
    fn draws_follow_the_softmax_and_the_seed() {
        let hot = Sampling { temperature: 1.0, seed: 9, ..Sampling::GREEDY };
        let drawn = draw(hot, 20_000);
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in LOGITS.iter().enumerate() {
            let share = drawn.iter().filter(|d| **d == id as u32).count() as f64 / 20_000.0;
            assert!((share - f64::from(*logit).exp() / total).abs() < 0.01, "token {id}: {share}");
        }
        assert_eq!(drawn[..50], draw(hot, 50)[..]);
        assert_ne!(drawn[..50], draw(Sampling { seed: 10, ..hot }, 50)[..]);
    }

    #[test]
    fn the_repetition_penalty_lowers_both_signs() {
        let mut sampler =
            Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY }).unwrap();
        let mut logits = LOGITS;
        assert_eq!(sampler.pick(&mut logits, &[1, 1, 3, 4]), 2);
        assert_eq!(logits, [1.0, 1.5, 2.0, 1.5, -2.0]);
    }

    #[test]
    fn impossible_settings_are_errors() {
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::GREEDY },
            Sampling { temperature: f32::NAN, ..Sampling::GREEDY },
            Sampling { top_p: 0.0, ..Sampling::GREEDY },
            Sampling { min_p: 1.5, ..Sampling::GREEDY },
            Sampling { repetition_penalty: 0.0, ..Sampling::GREEDY },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
    }
}
