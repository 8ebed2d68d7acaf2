//! The range of an axis, and ticks at round numbers.

/// Largest value that can be drawn; leaves room for differences and products.
const MAX_ABS: f64 = 1e150;
/// Numbers written without a power of ten; others are written as `2e−4`.
const PLAIN: std::ops::Range<f64> = 1e-3..1e12;

/// A linear or logarithmic axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) is_log: bool,
    pub(super) ticks: Vec<f64>,
}

/// Whether a linear or logarithmic axis can show a value.
pub(super) fn is_drawable(value: f64, is_log: bool) -> bool {
    value.abs() <= MAX_ABS && (!is_log || value >= 1.0 / MAX_ABS)
}

impl Axis {
    /// An axis that shows all the values, with about `n_ticks` ticks. Values that cannot be drawn
    /// are ignored; without any others it goes from 0 to 1, or 1 to 10 if logarithmic.
    pub(super) fn new(values: impl Iterator<Item = f64>, is_log: bool, n_ticks: usize) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| is_drawable(*v, is_log)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = if is_log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if is_log { Self::log(low, high, n_ticks) } else { Self::linear(low, high, n_ticks) }
    }

    fn linear(mut low: f64, mut high: f64, n_ticks: usize) -> Self {
        if high - low <= 1e-9 * low.abs().max(high.abs()) {
            let margin = if high == 0.0 { 1.0 } else { 0.1 * high.abs() };
            (low, high) = (low - margin, high + margin);
        }
        let ticks = linear_ticks(low, high, n_ticks);
        Self { low, high, is_log: false, ticks }
    }

    fn log(mut low: f64, mut high: f64, n_ticks: usize) -> Self {
        if high / low <= 1.001 {
            (low, high) = (low / 1.2, high * 1.2);
        }
        let ticks = log_ticks(low, high, n_ticks);
        Self { low, high, is_log: true, ticks }
    }

    /// Moves the ends apart by a share of the length, so that curves do not touch the frame.
    pub(super) fn with_margin(mut self, share: f64, n_ticks: usize) -> Self {
        if self.is_log {
            let factor = (self.high / self.low).powf(share);
            self.low /= factor;
            self.high *= factor;
            self.ticks = log_ticks(self.low, self.high, n_ticks);
        } else {
            let margin = share * (self.high - self.low);
            // An axis that starts at 0 still does: no loss or share is below 0.
            self.low =
                if self.low >= 0.0 { (self.low - margin).max(0.0) } else { self.low - margin };
            self.high += margin;
            self.ticks = linear_ticks(self.low, self.high, n_ticks);
        }
        self
    }

    /// Maps a value to 0 at the low end up to 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// The text at a tick. Ticks at equal distances have equally many decimals.
    pub(super) fn label(&self, tick: f64) -> String {
        let max = self.ticks.iter().fold(0.0_f64, |max, t| max.max(t.abs()));
        let gaps = || self.ticks.windows(2).map(|t| t[1] - t[0]);
        let gap = gaps().fold(f64::INFINITY, f64::min);
        if !gap.is_finite() || gaps().any(|g| g > 1.5 * gap) {
            return short_number(tick);
        }
        tick_label(tick, max, gap)
    }
}

/// Multiples of 1, 2 or 5 times a power of ten between two numbers.
fn linear_ticks(low: f64, high: f64, n_ticks: usize) -> Vec<f64> {
    let step = round_step((high - low) / n_ticks.max(1) as f64);
    // The quotients of round numbers may miss a whole number by their last digit.
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    let n = (last - first) as usize;
    let power = step.log10().floor();
    // Dividing by a power of ten gives 0.3 where multiplying by 0.1 gives 0.30000000000000004.
    let tick = |i: usize| {
        let multiple = first + i as f64;
        if power < 0.0 {
            multiple * (step * 10_f64.powf(-power)).round() / 10_f64.powf(-power)
        } else {
            multiple * step
        }
    };
    (0..=n.min(20)).map(tick).filter(|t| (low..=high).contains(t)).collect()
}

/// Powers of ten. If these are few, also 2 and 5 times each. If the range is too short for that,
/// round numbers at equal distances.
fn log_ticks(low: f64, high: f64, n_ticks: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let inside = |t: &f64| (low..=high).contains(t);
    let powers: Vec<f64> = (first..=last).map(power_of_ten).filter(inside).collect();
    let finer = (first..=last).flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * power_of_ten(p)));
    let finer: Vec<f64> = finer.filter(inside).collect();
    if finer.len() < 3 {
        return linear_ticks(low, high, n_ticks);
    }
    if finer.len() <= n_ticks + 3 {
        return finer;
    }
    let stride = powers.len().div_ceil(n_ticks.max(1) + 1).max(1);
    powers.into_iter().step_by(stride).collect()
}

/// The decimal literal, so that 1e-3 is exactly the number written so.
fn power_of_ten(power: i32) -> f64 {
    if power < 0 { 1.0 / 10_f64.powi(-power) } else { 10_f64.powi(power) }
}

/// The least of 1, 2, 5 times a power of ten that is not less.
fn round_step(step: f64) -> f64 {
    let base = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * base >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * base
}

/// Formats a tick with as many decimals as the gap between ticks needs, in units of the axis.
fn tick_label(tick: f64, max: f64, gap: f64) -> String {
    if tick == 0.0 {
        return "0".to_owned();
    }
    if !PLAIN.contains(&max) || gap < 1e-7 {
        return scientific(tick);
    }
    let (unit, suffix) = unit(max);
    let decimals = (-(gap / unit).log10() - 1e-9).ceil().max(0.0) as usize;
    let decimals = decimals + usize::from(!is_whole(gap / unit * 10_f64.powi(decimals as i32)));
    minus(&format!("{:.decimals$}{suffix}", tick / unit))
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6 * value.abs().max(1.0)
}

/// Thousands from 10,000, millions and billions from 1.
fn unit(max: f64) -> (f64, &'static str) {
    match max {
        max if max >= 1e9 => (1e9, "B"),
        max if max >= 1e6 => (1e6, "M"),
        max if max >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

/// A value with about four significant digits, such as a curve's last one.
pub(super) fn short_number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !PLAIN.contains(&value.abs()) {
        return scientific(value);
    }
    let (unit, suffix) = unit(value.abs());
    let scaled = value / unit;
    let decimals = (3.0 - scaled.abs().log10().floor()).clamp(0.0, 8.0) as usize;
    let text = format!("{scaled:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    minus(&format!("{text}{suffix}"))
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    minus(&format!("{digits}e{power}"))
}

/// The true minus sign is as wide as the plus.
fn minus(text: &str) -> String {
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(values: &[f64], is_log: bool) -> Axis {
        Axis::new(values.iter().copied(), is_log, 5)
    }

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|t| axis.label(*t)).collect()
    }

    /// The number is 1 to 999 times a power of ten.
    fn is_round(value: f64) -> bool {
        value == 0.0
            || format!("{:.12e}", value.abs()).split('e').next().unwrap()[1..]
                .trim_end_matches('0')
                .len()
                <= 3
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ranges = [
            (0.0, 1.0),
            (0.0, 9_999.0),
            (-3.7, 12.9),
            (3.21, 3.48),
            (1e-7, 3e-6),
            (0.013, 87.0),
            (1.0, 1e6),
            (5e9, 7.3e9),
            (0.5, 0.98),
            (1e-12, 1e12),
            (2.0, 2.0),
            (0.1, 0.7),
        ];
        for (low, high) in ranges {
            for is_log in [false, low > 0.0] {
                for axis in
                    [axis(&[low, high], is_log), axis(&[high, low], is_log).with_margin(0.04, 5)]
                {
                    assert!((2..=12).contains(&axis.ticks.len()), "{axis:?}");
                    assert!(axis.low <= low && high <= axis.high, "{axis:?}");
                    for &tick in &axis.ticks {
                        assert!(is_round(tick), "{tick} in {axis:?}");
                        assert!((0.0..=1.0).contains(&axis.place(tick)), "{tick} in {axis:?}");
                    }
                    let mut texts = labels(&axis);
                    texts.dedup();
                    assert_eq!(texts.len(), axis.ticks.len(), "{texts:?}");
                }
            }
        }
    }

    #[test]
    fn labels_are_as_people_write_them() {
        assert_eq!(
            labels(&axis(&[0.0, 1.0], false)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|t| if t == "0.0" { "0" } else { t })
        );
        assert_eq!(
            labels(&axis(&[0.0, 50_000.0], false)),
            ["0", "10k", "20k", "30k", "40k", "50k"]
        );
        assert_eq!(
            labels(&axis(&[0.0, 2_500.0], false)),
            ["0", "500", "1000", "1500", "2000", "2500"]
        );
        assert_eq!(labels(&axis(&[-1.0, 1.0], false)), ["−1.0", "−0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels(&axis(&[0.0, 6e-4], false)), ["0", "2e−4", "4e−4", "6e−4"]);
        assert_eq!(labels(&axis(&[1e-5, 1e-1], true)), ["1e−5", "1e−4", "0.001", "0.01", "0.1"]);
        assert_eq!(labels(&axis(&[2.0, 40.0], true)), ["2", "5", "10", "20"]);
        assert_eq!(labels(&axis(&[3.0, 3.9], true)), ["3.0", "3.2", "3.4", "3.6", "3.8"]);
    }

    #[test]
    fn values_without_a_place_are_ignored() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX];
        assert_eq!(axis(&odd, false), axis(&[0.0, 1.0], false));
        assert_eq!(axis(&[-1.0, 0.0, f64::NAN], true), axis(&[1.0, 10.0], true));
        assert_eq!(axis(&[], false), axis(&[0.0, 1.0], false));
        let mut with_odd = odd.to_vec();
        with_odd.extend([2.0, 7.0]);
        assert_eq!(axis(&with_odd, false), axis(&[2.0, 7.0], false));
    }

    #[test]
    fn extreme_ranges_have_finite_ticks() {
        for values in [[-1e150, 1e150], [1.0, 1.0 + 1e-15], [-1e-300, 1e-300], [0.0, 1e-310]] {
            let axis = axis(&values, false).with_margin(0.04, 5);
            assert!(axis.ticks.len() <= 21, "{axis:?}");
            assert!(axis.ticks.iter().all(|t| t.is_finite()), "{axis:?}");
            assert!(values.iter().all(|v| (0.0..=1.0).contains(&axis.place(*v))), "{axis:?}");
        }
    }

    #[test]
    fn last_values_have_four_digits() {
        assert_eq!(short_number(2.345_678), "2.346");
        assert_eq!(short_number(0.9), "0.9");
        assert_eq!(short_number(1_234.5), "1234");
        assert_eq!(short_number(123_456.0), "123.5k");
        assert_eq!(short_number(-0.000_02), "−2e−5");
        assert_eq!(short_number(100.0), "100");
    }
}
