//! 95 % intervals of a proportion, of a mean over seeds, and of a paired difference.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004,
    2.262_157, 2.228_139, 2.200_985, 2.178_813, 2.160_369, 2.144_787, 2.131_450, 2.119_905,
    2.109_816, 2.100_922, 2.093_024, 2.085_963, 2.079_614, 2.073_873, 2.068_658, 2.063_899,
    2.059_539, 2.055_529, 2.051_831, 2.048_407, 2.045_230, 2.042_272,
];

/// A closed interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether the interval contains the value; both ends count.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Half its length.
    #[must_use]
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// A mean over runs with its spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation with `n - 1` in the denominator; `None` for a single run.
    pub sd: Option<f64>,
    /// Number of runs.
    pub n: usize,
    /// The 95 % interval of the mean; `None` for a single run, which says nothing about spread.
    pub interval: Option<Interval>,
}

/// Formats as `0.8512 ± 0.0103 (n = 3)`, and a single run as `0.8512 (n = 1)`. Respects a
/// precision.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        write!(f, "{:.digits$}", self.mean)?;
        if let Some(interval) = self.interval {
            write!(f, " ± {:.digits$}", interval.half_width())?;
        }
        write!(f, " (n = {})", self.n)
    }
}

/// Wilson's score interval of a proportion: with `p = successes / n` and `z = 1.96`,
///
/// ```text
/// ( p + z²/2n  ±  z √( p (1 - p) / n + z²/4n² ) ) / ( 1 + z²/n )
/// ```
///
/// It stays within 0 and 1, and it is also accurate for few trials and for proportions near the
/// ends, where `p ± 1.96 √(p (1 - p) / n)` is not. Source: Wilson 1927, "Probable inference, the
/// law of succession, and statistical inference".
///
/// # Errors
/// If there are no trials or more successes than trials.
pub fn wilson(successes: u64, n: u64) -> Result<Interval> {
    let what = "the interval of a proportion";
    if n == 0 {
        return Err(Error::Empty { what, items: "trials" });
    }
    if successes > n {
        return Err(Error::TooManySuccesses { what, successes, n });
    }
    let count = n as f64;
    let p = successes as f64 / count;
    let shrink = 1.0 / (1.0 + Z * Z / count);
    let centre = shrink * (p + Z * Z / (2.0 * count));
    let half = shrink * Z * (p * (1.0 - p) / count + Z * Z / (4.0 * count * count)).sqrt();
    // At the ends the formula gives exactly 0 and 1; rounding does not.
    let low = if successes == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if successes == n { 1.0 } else { (centre + half).min(1.0) };
    Ok(Interval { low, high })
}

/// The 97.5 % quantile of Student's t distribution: a table up to 30 degrees of freedom, and from
/// there the expansion in `1 / df` around the normal quantile (Abramowitz and Stegun 26.7.5),
/// whose error is below 1e-6. `None` for 0 degrees of freedom.
#[must_use]
pub fn t_quantile(df: usize) -> Option<f64> {
    if df <= T.len() {
        return T.get(df.checked_sub(1)?).copied();
    }
    let v = df as f64;
    let [z3, z5, z7] = [Z.powi(3), Z.powi(5), Z.powi(7)];
    let first = (z3 + Z) / 4.0;
    let second = (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / 96.0;
    let third = (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / 384.0;
    Some(Z + first / v + second / (v * v) + third / (v * v * v))
}

/// Mean over seeds with its 95 % interval: `mean ± t(n - 1) · sd / √n`.
///
/// It assumes that the runs are independent and roughly normally distributed.
///
/// # Errors
/// If there are no values, or one is not finite.
pub fn mean_interval(values: &[f64]) -> Result<Estimate> {
    estimate("a mean over seeds", values)
}

/// Mean of `a[i] - b[i]` with its 95 % interval, where run `i` of both had the same seed and data.
///
/// Pairing removes what both runs share, so a difference can be certain where the two intervals
/// overlap. If the interval does not contain 0, the difference is significant at the 5 % level.
///
/// # Errors
/// If the lists are empty or differ in length, or a value is not finite.
pub fn paired_difference(a: &[f64], b: &[f64]) -> Result<Estimate> {
    let what = "a paired difference over seeds";
    if a.len() != b.len() {
        return Err(Error::LengthMismatch {
            what,
            left: a.len(),
            left_name: "runs of the first kind",
            right: b.len(),
            right_name: "of the second",
        });
    }
    check_finite(what, a)?;
    check_finite(what, b)?;
    estimate(what, &a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>())
}

fn estimate(what: &'static str, values: &[f64]) -> Result<Estimate> {
    check_finite(what, values)?;
    let n = values.len();
    if n == 0 {
        return Err(Error::Empty { what, items: "runs" });
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let Some(t) = t_quantile(n - 1) else {
        return Ok(Estimate { mean, sd: None, n, interval: None });
    };
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let sd = (squares / (n - 1) as f64).sqrt();
    let half = t * sd / (n as f64).sqrt();
    let interval = Some(Interval { low: mean - half, high: mean + half });
    Ok(Estimate { mean, sd: Some(sd), n, interval })
}

fn check_finite(what: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite { what, index, value: values[index].to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} against {expected}");
    }

    #[test]
    fn wilson_gives_published_values() {
        // Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
        for (successes, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let interval = wilson(successes, n).unwrap();
            near(interval.low, low, 5e-5);
            near(interval.high, high, 5e-5);
        }
        assert_eq!(wilson(7, 7).unwrap().high, 1.0);
    }

    #[test]
    fn wilson_is_symmetric() {
        let (a, b) = (wilson(3, 17).unwrap(), wilson(14, 17).unwrap());
        near(a.low, 1.0 - b.high, 1e-12);
        near(a.high, 1.0 - b.low, 1e-12);
    }

    #[test]
    fn impossible_counts_are_errors() {
        assert!(matches!(wilson(0, 0), Err(Error::Empty { .. })));
        assert!(matches!(wilson(3, 2), Err(Error::TooManySuccesses { .. })));
    }

    /// `P(T <= t)` by Simpson's rule on the density, with the normalisation integrated as well.
    fn t_cdf(t: f64, df: usize) -> f64 {
        // With x = √df · tan(u) the density is proportional to cos(u)^(df - 1) on (-π/2, π/2).
        let integral = |end: f64| {
            let steps = 2_000;
            let h = end / steps as f64;
            let f = |i: usize| (i as f64 * h).cos().powi(df as i32 - 1);
            let inner: f64 = (1..steps).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
            h / 3.0 * (f(0) + inner + f(steps))
        };
        let half = integral(std::f64::consts::FRAC_PI_2);
        0.5 + 0.5 * integral((t / (df as f64).sqrt()).atan()) / half
    }

    #[test]
    fn t_quantiles_invert_the_distribution() {
        for df in (1..=60).chain([100, 400]) {
            near(t_cdf(t_quantile(df).unwrap(), df), 0.975, 1e-7);
        }
        assert_eq!(t_quantile(0), None);
        near(t_quantile(1_000_000).unwrap(), Z, 1e-5);
    }

    #[test]
    fn mean_interval_of_three_seeds_is_known() {
        let e = mean_interval(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((e.mean, e.sd, e.n), (2.0, Some(1.0), 3));
        near(e.interval.unwrap().half_width(), 4.302_653 / 3.0_f64.sqrt(), 1e-9);
        assert_eq!(e.to_string(), "2.0000 ± 2.4841 (n = 3)");
        assert_eq!(format!("{e:.1}"), "2.0 ± 2.5 (n = 3)");
    }

    #[test]
    fn one_seed_has_no_interval() {
        let e = mean_interval(&[0.5]).unwrap();
        assert_eq!((e.mean, e.sd, e.interval), (0.5, None, None));
        assert_eq!(e.to_string(), "0.5000 (n = 1)");
    }

    #[test]
    fn pairing_finds_a_difference_that_overlapping_intervals_hide() {
        let (a, b) = ([0.70, 0.80, 0.90], [0.68, 0.785, 0.875]);
        let (single_a, single_b) = (mean_interval(&a).unwrap(), mean_interval(&b).unwrap());
        assert!(single_a.interval.unwrap().contains(single_b.mean));
        let difference = paired_difference(&a, &b).unwrap();
        near(difference.mean, 0.02, 1e-12);
        near(difference.sd.unwrap(), 0.005, 1e-12);
        assert!(!difference.interval.unwrap().contains(0.0));
    }

    #[test]
    fn values_that_are_not_numbers_are_errors() {
        let error = mean_interval(&[1.0, f64::NAN]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "computing a mean over seeds: value 1 is NaN, expected a finite number"
        );
        assert!(error.hint().unwrap().contains("diverged"));
        assert!(paired_difference(&[1.0], &[f64::INFINITY]).is_err());
        assert!(matches!(paired_difference(&[1.0], &[]), Err(Error::LengthMismatch { .. })));
        assert!(matches!(mean_interval(&[]), Err(Error::Empty { .. })));
    }
}
