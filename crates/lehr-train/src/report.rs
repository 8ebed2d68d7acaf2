//! `report.html` of a run: curves, settings, samples.

use std::collections::BTreeSet;

use lehr_eval::report::{Curve, Report};
use lehr_model::io::write_file;
use serde_json::Value;

use crate::{
    DataCheck, Error, Metrics, Prediction, Recipe, Result, RunDir, WatchdogEvent, read_metrics,
    read_watchdog_events,
};

const MIB: f64 = 1_048_576.0;
/// Number of events that a report lists.
const EVENTS_MAX: usize = 100;

/// Writes the HTML report of a run from its metrics and samples.
///
/// # Errors
/// If they cannot be read or the report not written.
pub fn write_report(run: &RunDir, recipe: &Recipe) -> Result<()> {
    let metrics = read_metrics(&run.metrics())?;
    let mut report = Report::new(&format!("Run {}", run.path().display()));
    if let Some(last) = metrics.last() {
        report.paragraph(&format!(
            "{} steps, {} tokens, {:.0} s; last loss {:.4}.",
            last.step, last.tokens_seen, last.elapsed_s, last.loss
        ));
    }
    comparison(&mut report, &Prediction::read(run)?, &metrics);
    curves(&mut report, &metrics);
    if let Some(check) = DataCheck::read(run)? {
        check.add_to(&mut report);
    }
    watchdog(&mut report, &read_watchdog_events(&run.metrics())?);
    samples(&mut report, run)?;
    report.paragraph("The recipe of this run, which can be run again as it is:");
    report.code(&recipe.to_toml());
    Ok(write_file(&run.report(), report.render().as_bytes())?)
}

/// Adds what was measured, beside what the plan predicted of it.
fn comparison(report: &mut Report, predicted: &Prediction, metrics: &[Metrics]) {
    let Some(last) = metrics.last() else { return };
    let evaluation = metrics.iter().rev().find_map(|m| m.eval.as_ref());
    let memory_bytes = metrics.iter().map(|m| m.memory_bytes).max().filter(|bytes| *bytes > 0);
    let speed = last.tokens_seen as f64 / last.elapsed_s;
    let number = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / MIB);
    let values = [
        ("training, s", predicted.seconds, Some(last.elapsed_s)),
        ("tokens per second", predicted.tokens_per_s, Some(speed).filter(|v| v.is_finite())),
        ("held-out loss, nats per label", predicted.loss, evaluation.map(|e| e.loss)),
        (
            "held-out bits per byte",
            predicted.bits_per_byte,
            evaluation.and_then(|e| e.bits_per_byte),
        ),
        ("memory for tensors, MiB", number(predicted.memory_bytes), number(memory_bytes)),
    ];
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
    let rows = values.into_iter().filter(|(_, a, b)| a.is_some() || b.is_some());
    let rows: Vec<Vec<String>> = if *predicted == Prediction::default() {
        rows.map(|(name, _, measured)| vec![name.to_owned(), shown(measured)]).collect()
    } else {
        let ratio =
            |a: Option<f64>, b: Option<f64>| Some(b? / a?).filter(|ratio| ratio.is_finite());
        rows.map(|(name, a, b)| vec![name.to_owned(), shown(a), shown(b), shown(ratio(a, b))])
            .collect()
    };
    match rows.first().map_or(0, Vec::len) {
        4 => {
            let header = ["", "predicted", "measured", "measured ÷ predicted"];
            report.table("Predicted and measured", &header, &rows)
        }
        _ => report.table("Measured", &["", "measured"], &rows),
    };
}

/// Formats a number with about four digits.
fn digits(value: f64) -> String {
    let decimals = (3.0 - value.abs().max(1e-6).log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

/// Adds the events of the watchdog, the first ones of many.
fn watchdog(report: &mut Report, events: &[WatchdogEvent]) {
    if events.is_empty() {
        return;
    }
    let row = |event: &WatchdogEvent| vec![event.step.to_string(), event.text()];
    let rows: Vec<_> = events.iter().take(EVENTS_MAX).map(row).collect();
    report.table("Watchdog", &["step", "event"], &rows);
    if events.len() > EVENTS_MAX {
        let n = events.len() - EVENTS_MAX;
        report.paragraph(&format!("{n} more events are in metrics.jsonl."));
    }
}

fn curves(report: &mut Report, metrics: &[Metrics]) {
    let points = |value: &dyn Fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|m| Some((m.step as f64, value(m)?))).collect()
    };
    let curve = |name: &str, value: &dyn Fn(&Metrics) -> Option<f64>| Curve {
        name: name.to_owned(),
        points: points(value),
    };
    let loss = [
        curve("training", &|m| Some(m.loss)),
        curve("held out", &|m| m.eval.as_ref().map(|e| e.loss)),
    ];
    report.curves("Loss", "step", "nats per label", &loss, false);
    let bits = curve("held out", &|m| m.eval.as_ref().and_then(|e| e.bits_per_byte));
    if !bits.points.is_empty() {
        report.curves("Bits per byte", "step", "bits", &[bits], false);
    }
    let f1 = curve("held out", &|m| Some(m.eval.as_ref()?.entities?.f1));
    if !f1.points.is_empty() {
        report.curves("F1 of entities", "step", "F1", &[f1], false);
    }
    let accuracy = curve("held out", &|m| m.eval.as_ref().and_then(|e| e.accuracy));
    if !accuracy.points.is_empty() {
        report.curves("Accuracy", "step", "share", &[accuracy], false);
    }
    for name in names(metrics) {
        let curves = [
            curve("training", &|m| m.metrics.get(&name).copied()),
            curve("held out", &|m| m.eval.as_ref()?.metrics.get(&name).copied()),
        ];
        report.curves(&name, "step", "mean per target", &curves, false);
    }
    report.curves("Gradient norm", "step", "norm", &[curve("", &|m| Some(m.grad_norm))], true);
    report.curves("Learning rate", "step", "", &[curve("", &|m| Some(f64::from(m.lr)))], false);
    let speed = curve("", &|m| Some(m.tokens_per_s));
    report.curves("Speed", "step", "tokens per second", &[speed], false);
}

/// Collects the names of the objective's metrics.
fn names(metrics: &[Metrics]) -> BTreeSet<String> {
    let held_out = |m: &Metrics| m.eval.iter().flat_map(|e| e.metrics.keys()).cloned().collect();
    let of = |m: &Metrics| -> BTreeSet<String> {
        let held_out: Vec<String> = held_out(m);
        m.metrics.keys().cloned().chain(held_out).collect()
    };
    metrics.iter().flat_map(of).collect()
}

fn samples(report: &mut Report, run: &RunDir) -> Result<()> {
    let path = run.samples();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("reading", &path)(e)),
    };
    let sample = |line: &str| {
        let json: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
        let title = format!("step {}: {}", json.get("step")?, text("prompt")?);
        Some((title, text("text")?))
    };
    let samples: Vec<_> = text.lines().filter_map(sample).collect();
    if !samples.is_empty() {
        report.samples("Samples", &samples);
    }
    Ok(())
}
