//! `report.html` of a run: curves, settings, samples.

use std::collections::BTreeSet;

use lehr_eval::report::{Curve, Report};
use lehr_model::io::write_file;
use serde_json::Value;

use crate::{Error, Metrics, Recipe, Result, RunDir, read_metrics};

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
    curves(&mut report, &metrics);
    samples(&mut report, run)?;
    report.paragraph("The recipe of this run, which can be run again as it is:");
    report.code(&recipe.to_toml());
    Ok(write_file(&run.report(), report.render().as_bytes())?)
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
