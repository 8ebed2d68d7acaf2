//! Choosing the next token.

use lehr_tensor::Philox;
pub use lehr_tensor::inplace::sample::Sampling;

use crate::{Error, Result};

/// A sampler of tokens. Its n-th draw depends only on the seed and n.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
}

impl Sampler {
    /// Creates a sampler at the start of its random stream.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        Self::continued(sampling, 0)
    }

    /// Creates a sampler whose random stream continues after `n_drawn` numbers.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn continued(sampling: Sampling, n_drawn: u64) -> Result<Self> {
        match sampling.fault() {
            None => Ok(Self { sampling, n_drawn }),
            Some((name, value, expected)) => {
                Err(Error::Sampling { name, value: f64::from(value), expected })
            }
        }
    }

    /// Returns the settings.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Returns the settings and the number of draws so far.
    #[must_use]
    pub fn state(&self) -> (Sampling, u64) {
        (self.sampling, self.n_drawn)
    }

    /// Counts a choice that a GPU made.
    pub(crate) fn count_choice(&mut self) {
        self.n_drawn += u64::from(!self.sampling.is_greedy());
    }

    /// Chooses a token from `logits [V]` and applies penalties to them in place. `text` holds the
    /// tokens so far; those from index `n_prompt` are generated. Ties go to the lower id.
    ///
    /// # Errors
    /// If a logit is NaN, the largest is infinite, or there are none: then no softmax exists.
    pub fn pick(&mut self, logits: &mut [f32], text: &[i32], n_prompt: usize) -> Result<u32> {
        check_logits(logits)?;
        let s = self.sampling;
        penalise_repeats(logits, text, s.repetition_penalty);
        let generated = &text[n_prompt.min(text.len())..];
        penalise_generated(logits, generated, s.frequency_penalty, s.presence_penalty);
        let top = best(logits);
        if s.is_greedy() {
            return Ok(top);
        }
        let top = logits[top as usize];
        let weight = |id: u32| f64::from(((logits[id as usize] - top) / s.temperature).exp());
        let mut descending = DescendingIds::new(logits, s.top_k);
        let mut total: f64 = descending.ids.iter().map(|id| weight(*id)).sum();
        let mut n_kept = descending.ids.len();
        if s.top_p < 1.0 || s.min_p > 0.0 {
            let (top_p, min_p) = (f64::from(s.top_p), f64::from(s.min_p));
            (n_kept, total) =
                keep((0..n_kept).map(|i| weight(descending.get(i))), total, top_p, min_p);
        }
        let draw = f64::from(Philox::new(s.seed, 0x5A4D).uniform(self.n_drawn)) * total;
        self.n_drawn += 1;
        let mut sum = 0.0;
        for i in 0..n_kept {
            sum += weight(descending.get(i));
            if draw < sum {
                return Ok(descending.get(i));
            }
        }
        Ok(descending.get(n_kept - 1))
    }
}

/// Checks that a softmax of the logits exists: it does not with a NaN or an infinite largest logit.
fn check_logits(logits: &[f32]) -> Result<()> {
    let n_nan = logits.iter().filter(|logit| logit.is_nan()).count();
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match n_nan == 0 && top.is_finite() {
        true => Ok(()),
        false => Err(Error::Logits { n_nan, top, n: logits.len() }),
    }
}

/// Ids in descending order of their logits, sorted lazily: a draw from a vocabulary of 150,000
/// reads only a few. Ties are ordered by id, so the order is unique.
struct DescendingIds<'a> {
    logits: &'a [f32],
    ids: Vec<u32>,
    n_sorted: usize,
}

impl<'a> DescendingIds<'a> {
    /// Orders all ids, or the most likely `top_k`.
    fn new(logits: &'a [f32], top_k: usize) -> Self {
        let ids = (0..logits.len() as u32).collect();
        let mut descending = Self { logits, ids, n_sorted: 0 };
        if top_k > 0 && top_k < descending.ids.len() {
            descending.sort_next(top_k);
            descending.ids.truncate(top_k);
        }
        descending
    }

    fn get(&mut self, index: usize) -> u32 {
        /// Number of ids sorted first. Later the sorted part doubles.
        const FIRST: usize = 64;
        while index >= self.n_sorted {
            self.sort_next(self.n_sorted.max(FIRST));
        }
        self.ids[index]
    }

    fn sort_next(&mut self, n: usize) {
        let logits = self.logits;
        let descending =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let rest = &mut self.ids[self.n_sorted..];
        let n = n.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n, descending);
        }
        rest[..n].sort_unstable_by(descending);
        self.n_sorted += n;
    }
}

/// Returns how many of the descending `weights` pass `top_p` and `min_p`, at least one, and their
/// sum. All weights sum to `total`; the first is 1.
fn keep(weights: impl Iterator<Item = f64>, total: f64, top_p: f64, min_p: f64) -> (usize, f64) {
    let (mut n, mut sum) = (0, 0.0);
    for weight in weights {
        if n > 0 && (weight < min_p || (top_p < 1.0 && sum >= top_p * total)) {
            break;
        }
        n += 1;
        sum += weight;
    }
    (n, sum)
}

/// Applies the repetition penalty: divides positive logits of tokens in `text` by it, and
/// multiplies negative ones with it.
fn penalise_repeats(logits: &mut [f32], text: &[i32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    each_once(logits, text, |logit, _| {
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    });
}

/// Subtracts `frequency` for each occurrence of a generated token, and `presence` once.
fn penalise_generated(logits: &mut [f32], generated: &[i32], frequency: f32, presence: f32) {
    if frequency == 0.0 && presence == 0.0 {
        return;
    }
    each_once(logits, generated, |logit, times| *logit -= frequency * times as f32 + presence);
}

/// Calls `change` with the logit of each distinct token and its number of occurrences.
fn each_once(logits: &mut [f32], tokens: &[i32], change: impl Fn(&mut f32, usize)) {
    let mut sorted: Vec<i32> = tokens.to_vec();
    sorted.sort_unstable();
    for same in sorted.chunk_by(|a, b| a == b) {
        if let Some(logit) = usize::try_from(same[0]).ok().and_then(|id| logits.get_mut(id)) {
            change(logit, same.len());
        }
    }
}

fn best(logits: &[f32]) -> u32 {
    let (mut best, mut largest) = (0, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > largest {
            (best, largest) = (id, *logit);
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
        (0..n).map(|_| sampler.pick(&mut LOGITS.clone(), &[], 0).unwrap()).collect()
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
        assert_eq!(sampler.pick(&mut logits, &[1, 1, 3, 4], 4).unwrap(), 2);
        assert_eq!(logits, [1.0, 1.5, 2.0, 1.5, -2.0]);
    }

    #[test]
    fn frequency_and_presence_count_generated_tokens() {
        let sampling =
            Sampling { frequency_penalty: 0.5, presence_penalty: 0.25, ..Sampling::GREEDY };
        let mut logits = LOGITS;
        // The prompt is 2 and 2; then 1 came twice and 3 once.
        let next = Sampler::new(sampling).unwrap().pick(&mut logits, &[2, 2, 1, 3, 1], 2);
        let next = next.unwrap();
        assert_eq!(logits, [1.0, 1.75, 2.0, 2.25, -1.0]);
        assert_eq!(next, 3);
    }

    #[test]
    fn a_large_vocabulary_is_drawn_as_if_it_were_sorted() {
        let noise = Philox::new(5, 0);
        let logits: Vec<f32> = (0..5000).map(|i| 8.0 * noise.uniform(i)).collect();
        let mut sorted: Vec<u32> = (0..5000).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        let weight = |id: &u32| f64::from(logits[*id as usize]).exp();
        let total: f64 = sorted.iter().map(weight).sum();
        for (n, sampling) in [
            (5000, Sampling { temperature: 1.0, ..Sampling::GREEDY }),
            (1000, Sampling { temperature: 1.0, top_k: 1000, ..Sampling::GREEDY }),
        ] {
            let total = if n == 5000 { total } else { sorted[..n].iter().map(weight).sum() };
            let mut sampler = Sampler::new(sampling).unwrap();
            for draw in 0..200 {
                let found = sampler.pick(&mut logits.clone(), &[], 0).unwrap();
                let mut left = f64::from(Philox::new(0, 0x5A4D).uniform(draw)) * total;
                let mut weights = sorted.iter().map(|id| (*id, weight(id)));
                let want = weights.find(|(_, w)| {
                    left -= w;
                    left < 1e-6 * total
                });
                let rank = |id| sorted.iter().position(|s| *s == id).unwrap();
                // Sums in another order may differ in the last place: the neighbour is as good.
                assert!(rank(found).abs_diff(rank(want.unwrap().0)) <= 1, "draw {draw}");
            }
        }
    }

    #[test]
    fn logits_without_a_softmax_are_an_error_and_no_token() {
        let hot = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        for sampling in [Sampling::GREEDY, hot, Sampling { top_k: 2, ..hot }] {
            for bad in [
                &mut [1.0, f32::NAN, 3.0, -9.0][..],
                &mut [1.0, -f32::NAN],
                &mut [f32::INFINITY, 1.0],
                &mut [f32::NEG_INFINITY; 3],
                &mut [],
            ] {
                let mut sampler = Sampler::new(sampling).unwrap();
                let error = sampler.pick(bad, &[], 0).unwrap_err();
                assert!(error.to_string().contains("expected numbers"), "{error}");
                assert_eq!(sampler.state().1, 0, "a number was drawn");
            }
            // Impossible tokens are none to choose, and no fault.
            let mut masked = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY];
            assert_eq!(Sampler::new(sampling).unwrap().pick(&mut masked, &[], 0).unwrap(), 1);
        }
    }

    #[test]
    fn impossible_settings_are_errors() {
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::GREEDY },
            Sampling { temperature: f32::NAN, ..Sampling::GREEDY },
            Sampling { top_p: 0.0, ..Sampling::GREEDY },
            Sampling { min_p: 1.5, ..Sampling::GREEDY },
            Sampling { repetition_penalty: 0.0, ..Sampling::GREEDY },
            Sampling { presence_penalty: f32::NAN, ..Sampling::GREEDY },
            Sampling { frequency_penalty: f32::INFINITY, ..Sampling::GREEDY },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
    }
}
