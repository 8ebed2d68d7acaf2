//! The contents of the live view: numbers of a run as lines of text.

use lehr_train::{Evaluation, Metrics};
use unicode_width::UnicodeWidthChar;

use super::chart::{self, Curve};
use crate::cmd::memory;
use crate::ui::{evaluated, one_line};

/// Width and height of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// Lines besides the curve: progress, three lines of numbers, evaluation, sample.
const OTHER_LINES: usize = 5;
/// Height of the curve.
const CURVE_LINES: std::ops::RangeInclusive<usize> = 3..=10;
/// Seconds without a step after which the view says so.
const QUIET_SECONDS: f64 = 30.0;
/// Weight of a new loss in the mean that is shown.
const SMOOTHING: f64 = 0.1;

/// What is shown of a run.
pub(crate) struct View {
    /// GFLOP/s of matrix products on this machine.
    peak: f64,
    /// Step at which this process began.
    start: u64,
    step: u64,
    steps: u64,
    curve: Curve,
    evaluations: Vec<(u64, f64)>,
    loss: f64,
    last: Option<Metrics>,
    evaluation: Option<String>,
    sample: Option<String>,
}

/// The times of a view, in seconds.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// Since this process began its steps.
    pub(super) running: f64,
    /// Since its last step.
    pub(super) quiet: f64,
}

impl View {
    /// A view of a run that continues after `step`, with what was measured before.
    pub(crate) fn new(peak: f64, step: u64, steps: u64, before: &[Metrics]) -> Self {
        let mut view = Self {
            peak,
            start: step,
            step,
            steps,
            curve: Curve::starting(before.first().map_or(step, |first| first.step - 1)),
            evaluations: Vec::new(),
            loss: f64::NAN,
            last: None,
            evaluation: None,
            sample: None,
        };
        for metrics in before.iter().filter(|metrics| metrics.step <= step) {
            view.stepped(metrics);
            if let Some(evaluation) = &metrics.eval {
                view.evaluated(metrics.step, evaluation);
            }
        }
        view
    }

    pub(crate) fn stepped(&mut self, metrics: &Metrics) {
        self.step = metrics.step;
        self.curve.push(metrics.step, metrics.loss);
        self.loss = smoothed(self.loss, metrics.loss);
        self.last = Some(metrics.clone());
    }

    pub(crate) fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.evaluations.push((step, evaluation.loss));
        self.evaluation = Some(format!("step {step}: {}", evaluated(evaluation)));
    }

    pub(crate) fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        self.sample = Some(format!("step {step}: {} → {}", one_line(prompt), one_line(text)));
    }

    /// Goes back to an earlier step.
    pub(crate) fn rolled_back(&mut self, step: u64) {
        self.step = step;
        self.curve.truncate(step);
        self.evaluations.retain(|(evaluated, _)| *evaluated <= step);
    }

    /// The lines of the view; none is wider than the terminal, and together they fit it.
    pub(super) fn render(&self, size: Size, times: Times) -> Vec<String> {
        let mut lines = vec![self.progress(size.width, times)];
        let room = size.height.saturating_sub(OTHER_LINES + 1);
        if room >= *CURVE_LINES.start() {
            let height = room.min(*CURVE_LINES.end());
            lines.extend(chart::draw(&self.curve, &self.evaluations, size.width, height));
        }
        if let Some(last) = &self.last {
            let own = last.metrics.iter().map(|(name, value)| format!("   {name} {value:.4}"));
            let own: String = own.collect();
            let skipped = if last.skipped { "   skipped" } else { "" };
            lines.push(format!(
                "loss {:.4}   gradient norm {:.3}   learning rate {:.2e}{own}{skipped}",
                self.loss, last.grad_norm, last.lr
            ));
            lines.push(format!(
                "{:.0} tokens/s   {:.0}% of {:.0} GFLOP/s   {} of memory",
                last.tokens_per_s,
                100.0 * last.gflops / self.peak,
                self.peak,
                memory::bytes(last.memory_bytes)
            ));
        }
        lines.extend(self.evaluation.iter().map(|text| format!("held out, {text}")));
        lines.extend(self.sample.iter().map(|text| format!("sample, {text}")));
        lines.truncate(size.height.saturating_sub(1).max(1));
        lines.iter().map(|line| clip(line, size.width)).collect()
    }

    fn progress(&self, width: usize, times: Times) -> String {
        let Self { step, steps, start, .. } = *self;
        let n_made = step.saturating_sub(start) as f64;
        let left = times.running / n_made * steps.saturating_sub(step) as f64;
        let left = match (step >= steps, n_made > 0.0) {
            (true, _) => String::new(),
            (false, true) => format!("  {} left", duration(left)),
            (false, false) => "  measuring".to_owned(),
        };
        let quiet = match times.quiet > QUIET_SECONDS {
            true => format!("  no step for {}", duration(times.quiet)),
            false => String::new(),
        };
        let share = step as f64 / steps.max(1) as f64;
        let text = format!("step {step}/{steps}  {:.0}%{left}{quiet}", 100.0 * share);
        let n_cells = width.saturating_sub(text.len() + 2).min(40);
        let n_full = ((share * n_cells as f64) as usize).min(n_cells);
        match n_cells {
            0..4 => text,
            _ => format!("{}{}  {text}", "━".repeat(n_full), "╌".repeat(n_cells - n_full)),
        }
    }
}

/// A running mean that begins with the first value.
pub(crate) fn smoothed(mean: f64, value: f64) -> f64 {
    match (mean.is_nan(), value.is_finite()) {
        (true, _) => value,
        (false, true) => (1.0 - SMOOTHING) * mean + SMOOTHING * value,
        (false, false) => mean,
    }
}

/// A duration for people: `3 min 20 s`.
fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {:02} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// The number of columns that a text takes.
pub(super) fn width_of(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// The longest beginning of a text that fits `width` columns. A cut is marked by `…`.
fn clip(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let (mut clipped, mut used) = (String::new(), 1);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        clipped.push(c);
    }
    clipped.push('…');
    clipped
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn metrics(step: u64, loss: f64) -> Metrics {
        Metrics {
            step,
            loss,
            grad_norm: 1.25,
            lr: 1e-3,
            tokens_per_s: 12_345.6,
            gflops: 62.0,
            tokens_seen: 512 * step,
            elapsed_s: 1.0,
            memory_bytes: 1 << 30,
            skipped: false,
            metrics: BTreeMap::new(),
            eval: None,
        }
    }

    fn evaluation(loss: f64) -> Evaluation {
        let text =
            format!("{{\"loss\":{loss},\"bits_per_byte\":2.5,\"accuracy\":null,\"n_targets\":9}}");
        serde_json::from_str(&text).unwrap()
    }

    /// A run of a hundred steps after fifty of them.
    fn view() -> View {
        let mut view = View::new(100.0, 0, 100, &[]);
        for step in 1..=50 {
            view.stepped(&metrics(step, 2.0 + 8.0 / step as f64));
        }
        view.evaluated(25, &evaluation(2.6));
        view.evaluated(50, &evaluation(2.3));
        view.sampled(
            50,
            "从前",
            "有一座山\n\u{1b}[2Jand a long tail that no terminal of this width shows",
        );
        view
    }

    const TIMES: Times = Times { running: 100.0, quiet: 1.0 };

    #[test]
    fn a_terminal_shows_everything() {
        let lines = view().render(Size { width: 60, height: 12 }, TIMES);
        let want = include_str!("view.golden.txt");
        assert_eq!(lines.join("\n"), want.trim_end(), "\n{}", lines.join("\n"));
    }

    #[test]
    fn every_size_is_kept() {
        let (view, empty) = (view(), View::new(1.0, 7, 9, &[]));
        for width in 1..130 {
            for height in 1..30 {
                for view in [&view, &empty] {
                    let lines = view.render(Size { width, height }, TIMES);
                    assert!(!lines.is_empty() && lines.len() <= height, "{width}×{height}");
                    for line in &lines {
                        assert!(width_of(line) <= width, "{width}×{height}: {line:?}");
                        assert!(!line.contains(char::is_control), "{line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn times_are_estimated_from_the_steps_of_this_process() {
        let before: Vec<_> = (1..=50).map(|step| metrics(step, 3.0)).collect();
        let mut view = View::new(100.0, 50, 100, &before);
        assert!(view.progress(80, TIMES).ends_with("step 50/100  50%  measuring"));
        view.stepped(&metrics(51, 3.0));
        let times = Times { running: 100.0, quiet: 75.0 };
        let text = view.progress(90, times);
        assert!(text.ends_with("51%  1 h 21 min left  no step for 1 min 15 s"), "{text}");
        view.rolled_back(40);
        assert!(view.progress(80, TIMES).contains("step 40/100"));
        view.stepped(&metrics(100, 3.0));
        assert!(view.progress(80, TIMES).ends_with("step 100/100  100%"));
    }

    #[test]
    fn durations_are_short() {
        let texts = [0.4, 59.4, 60.0, 3599.0, 3600.0, 86_400.0 * 2.5].map(duration);
        let want = ["0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "2 d 12 h"];
        assert_eq!(texts, want);
    }
}
