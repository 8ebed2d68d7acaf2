//! Display of a run for people.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::Path;

use lehr_train::{DataCheck, Evaluation, Event, Metrics, Observer, Preview, WatchdogEvent};
use serde_json::json;

use crate::live::{self, View, smoothed};
use crate::stop;
pub(crate) use crate::stop::stopped;

/// Characters of a sample that a line shows.
const SAMPLE_CHARS: usize = 200;

/// Characters of an example of the data that are shown.
const EXAMPLE_CHARS: usize = 1200;

/// Ways to show the events of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A live view on a terminal, otherwise a line now and then.
    Human,
    /// A line now and then.
    Plain,
    /// One JSON object per line.
    Json,
}

/// Shows a run.
pub(crate) struct Show {
    style: Style,
    /// GFLOP/s of matrix products on this machine.
    peak: f64,
    /// What was measured before this process.
    before: Vec<Metrics>,
    is_live: bool,
    smoothed_loss: f64,
}

impl Show {
    pub(crate) fn new(style: Style, peak: f64) -> Self {
        Self { style, peak, before: Vec::new(), is_live: false, smoothed_loss: f64::NAN }
    }

    /// Shows the earlier steps of a run that continues.
    pub(crate) fn after(self, before: Vec<Metrics>) -> Self {
        Self { before, ..self }
    }

    fn start(&mut self, step: u64, steps: u64, n_params: usize) {
        let from = if step > 0 { format!(", continued at step {step}") } else { String::new() };
        println!("training {:.2} M parameters for {steps} steps{from}", n_params as f64 / 1e6);
        self.is_live = self.style == Style::Human && step < steps && live::is_possible();
        if self.is_live {
            live::begin(View::new(self.peak, step, steps, &self.before));
        }
    }

    fn step(&mut self, m: &Metrics, steps: u64) {
        if self.is_live {
            live::update(|view| view.stepped(m));
            return live::step_ended();
        }
        self.smoothed_loss = smoothed(self.smoothed_loss, m.loss);
        let text = format!(
            "loss {:.3}  {:.0} tok/s  {:.0}% of peak",
            self.smoothed_loss,
            m.tokens_per_s,
            100.0 * m.gflops / self.peak
        ) + &named(&m.metrics);
        if m.step == steps || m.step.is_multiple_of((steps / 20).max(1)) {
            println!("step {}/{steps}  {text}", m.step);
        }
    }

    /// Shows an event of the watchdog.
    fn watchdog(event: &WatchdogEvent) {
        println!("warning: {}", event.text());
        if let Some(step) = event.to_step {
            live::update(|view| view.rolled_back(step));
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
            Event::Watchdog { event } => json!({ "event": "watchdog", "watchdog": event }),
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
                println!("step {step}: held-out {}", evaluated(evaluation));
                live::update(|view| view.evaluated(*step, evaluation));
            }
            Event::Sampled { step, prompt, text } => {
                let shown: String = one_line(text).chars().take(SAMPLE_CHARS).collect();
                println!("  sample: {prompt} → {shown}");
                live::update(|view| view.sampled(*step, prompt, text));
            }
            Event::Saved { .. } => {}
            Event::Watchdog { event } => Self::watchdog(event),
            Event::Warning { text } => println!("warning: {text}"),
            Event::Skipped { path, reason } => {
                println!("warning: skipping {}: {reason}", path.display());
            }
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if self.is_live {
            live::end();
        }
    }
}

/// The results of an evaluation.
pub(crate) fn evaluated(evaluation: &Evaluation) -> String {
    let mut text = format!("loss {:.4}", evaluation.loss);
    if let Some(bits) = evaluation.bits_per_byte {
        text += &format!(", {bits:.4} bits per byte");
    }
    if let Some(entities) = evaluation.entities {
        text += &format!(", F1 of entities {:.1}%", 100.0 * entities.f1);
    }
    if let Some(accuracy) = evaluation.accuracy {
        text += &format!(", accuracy {:.1}%", 100.0 * accuracy);
    }
    text + &named(&evaluation.metrics)
}

/// A text on one line. Control characters, which a model may generate too, would change the
/// terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.replace('\n', " ⏎ ").chars().map(|c| if c.is_control() { '·' } else { c }).collect()
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

/// Shows what is learnt of the data.
pub(crate) fn show_data(style: Style, check: &DataCheck) {
    if style == Style::Json {
        println!("{}", json!({ "event": "data", "data": check, "warnings": check.warnings() }));
        return;
    }
    println!("{}", check.summary());
    check.warnings().iter().for_each(|warning| println!("warning: {warning}"));
    let in_colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if !check.previews.is_empty() {
        let how = if in_colour { "green" } else { "between ⟦ and ⟧" };
        println!("examples; what is learnt is {how}:");
    }
    check.previews.iter().for_each(|preview| println!("{}", example(preview, in_colour)));
}

/// Returns an example with marks around what is learnt; a long one without its middle.
fn example(preview: &Preview, in_colour: bool) -> String {
    let [before, after] = if in_colour { ["\x1b[32m", "\x1b[0m"] } else { ["⟦", "⟧"] };
    let all: usize = preview.parts.iter().map(|part| part.text.chars().count()).sum();
    let hidden = EXAMPLE_CHARS / 2..all.saturating_sub(EXAMPLE_CHARS / 2);
    let (mut text, mut at) = (String::new(), 0);
    for part in &preview.parts {
        let mut shown = String::new();
        for c in part.text.chars() {
            if at == hidden.start && !hidden.is_empty() {
                shown += &format!(" … {} characters … ", hidden.len());
            }
            if !hidden.contains(&at) {
                // Data must not steer the terminal.
                let is_safe = !c.is_control() || c == '\n' || c == '\t';
                shown.push(if is_safe { c } else { char::REPLACEMENT_CHARACTER });
            }
            at += 1;
        }
        let tag = part.tag.as_ref().filter(|_| !shown.is_empty());
        let tag = tag.map_or(String::new(), |tag| format!("[{tag}]"));
        match part.learnt && !shown.is_empty() {
            true => text += &format!("{before}{shown}{tag}{after}"),
            false => text += &shown,
        }
    }
    let label = preview.label.as_ref();
    let label = label.map_or(String::new(), |label| format!(" → {before}{label}{after}"));
    let lines: Vec<String> = format!("{text}{label}").lines().map(|l| format!("  {l}")).collect();
    lines.join("\n")
}
