//! Display of a run for people.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use lehr_train::{Event, Metrics, Observer};
use serde_json::json;

use crate::stop;
pub(crate) use crate::stop::stopped;

/// Ways to show the events of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A progress bar on a terminal, otherwise a line now and then.
    Human,
    /// One JSON object per line.
    Json,
}

/// Shows a run.
pub(crate) struct Show {
    style: Style,
    /// GFLOP/s of matrix products on this machine.
    peak: f64,
    bar: Option<ProgressBar>,
    smoothed_loss: f64,
}

impl Show {
    pub(crate) fn new(style: Style, peak: f64) -> Self {
        Self { style, peak, bar: None, smoothed_loss: f64::NAN }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => println!("{text}"),
        }
    }

    fn start(&mut self, step: u64, steps: u64, n_params: usize) {
        let from = if step > 0 { format!(", continued at step {step}") } else { String::new() };
        println!("training {:.2} M parameters for {steps} steps{from}", n_params as f64 / 1e6);
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(steps);
            let template = "{bar:24} {pos}/{len} {msg} {eta} left";
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_position(step);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, m: &Metrics, steps: u64) {
        self.smoothed_loss = match self.smoothed_loss.is_nan() {
            true => m.loss,
            false => 0.9 * self.smoothed_loss + 0.1 * m.loss,
        };
        let text = format!(
            "loss {:.3}  {:.0} tok/s  {:.0}% of peak",
            self.smoothed_loss,
            m.tokens_per_s,
            100.0 * m.gflops / self.peak
        ) + &named(&m.metrics);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(m.step);
            if m.step == steps {
                bar.finish_and_clear();
            }
        } else if m.step == steps || m.step.is_multiple_of((steps / 20).max(1)) {
            println!("step {}/{steps}  {text}", m.step);
        }
    }

    fn json(event: &Event<'_>) {
        let line = match event {
            Event::Warning { text } => json!({ "event": "warning", "text": text }),
            Event::Started { step, steps, n_params } => {
                json!({ "event": "started", "step": step, "steps": steps, "params": n_params })
            }
            Event::Stepped { metrics, .. } => json!({ "event": "step", "metrics": metrics }),
            Event::Evaluated { step, evaluation } => {
                json!({ "event": "eval", "step": step, "eval": evaluation })
            }
            Event::Sampled { step, prompt, text } => {
                json!({ "event": "sample", "step": step, "prompt": prompt, "text": text })
            }
            Event::Saved { path } => json!({ "event": "saved", "path": path }),
            Event::Skipped { path, reason } => {
                json!({ "event": "skipped", "path": path, "reason": reason })
            }
        };
        println!("{line}");
    }
}

impl Observer for Show {
    fn event(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Started { .. }) {
            stop::preparation_ended();
        }
        if self.style == Style::Json {
            return Self::json(event);
        }
        match event {
            Event::Started { step, steps, n_params } => self.start(*step, *steps, *n_params),
            Event::Stepped { metrics, steps } => self.step(metrics, *steps),
            Event::Evaluated { step, evaluation } => {
                let mut text = format!("step {step}: held-out loss {:.4}", evaluation.loss);
                if let Some(bits) = evaluation.bits_per_byte {
                    text += &format!(", {bits:.4} bits per byte");
                }
                if let Some(accuracy) = evaluation.accuracy {
                    text += &format!(", accuracy {:.1}%", 100.0 * accuracy);
                }
                text += &named(&evaluation.metrics);
                self.line(&text);
            }
            Event::Sampled { prompt, text, .. } => {
                let shown: String = text.replace('\n', " ⏎ ").chars().take(200).collect();
                self.line(&format!("  sample: {prompt} → {shown}"));
            }
            Event::Saved { .. } => {}
            Event::Warning { text } => self.line(&format!("warning: {text}")),
            Event::Skipped { path, reason } => {
                self.line(&format!("warning: skipping {}: {reason}", path.display()));
            }
        }
    }
}

/// The objective's named numbers, behind the others.
fn named(metrics: &BTreeMap<String, f64>) -> String {
    metrics.iter().map(|(name, value)| format!("  {name} {value:.4}")).collect()
}

/// Tells what the files of a model say that is not used.
pub(crate) fn warn(warnings: &[String]) {
    warnings.iter().for_each(|text| eprintln!("warning: {text}"));
}

/// Says how to continue an interrupted run.
pub(crate) fn say_interrupted(style: Style, dir: &Path, step: u64, steps: u64, command: &str) {
    if style == Style::Json {
        let event = json!({
            "event": "interrupted", "step": step, "steps": steps, "path": dir, "continue": command,
        });
        println!("{event}");
        return;
    }
    println!("interrupted after step {step} of {steps}; all is saved in {}", dir.display());
    println!("continue with: {command}");
}
