//! The numbers of a step, one line of JSON each.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Evaluation, Result};

/// The metrics of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Number of steps made, including this one.
    pub step: u64,
    /// Mean loss per target (supervised token, or text), in nats. JSON has `null` if it is not
    /// finite, which only a skipped step's may be.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f32,
    /// Tokens per second in this step.
    pub tokens_per_s: f64,
    /// 10⁹ floating-point operations per second, by the model's formula.
    pub gflops: f64,
    /// Number of tokens that went through the model so far.
    pub tokens_seen: u64,
    /// Seconds spent so far.
    pub elapsed_s: f64,
    /// Bytes of the device's memory that are reserved for tensors. Lines of earlier versions lack
    /// them.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Whether the watchdog dropped the update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// The objective's own metrics, means per target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// The evaluation after this step, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<Evaluation>,
}

fn number_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Appends one line to the metrics file.
pub(crate) fn append(path: &Path, line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).expect("metrics are numbers and text") + "\n";
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io("opening", path))?;
    file.write_all(text.as_bytes()).map_err(Error::io("writing", path))
}

/// Makes the lines of a file durable, if there is one.
pub(crate) fn sync(path: &Path) -> Result<()> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("syncing", path)(e)),
        _ => Ok(()),
    }
}

/// Removes the lines after `step`, which a resumed run writes again, and an incomplete last line.
/// Lines with an `attempt` (events of the watchdog) are compared with `attempt` instead.
pub(crate) fn truncate(path: &Path, step: u64, attempt: u64) -> Result<()> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("reading", path)(e)),
    };
    // A crash can cut a line inside a character, so an incomplete line is not valid UTF-8.
    let keep = |line: &&[u8]| {
        let json = serde_json::from_slice::<serde_json::Value>(line).ok();
        let number = |key| json.as_ref().and_then(|json| json.get(key)?.as_u64());
        match number("attempt") {
            Some(number) => number <= attempt,
            None => number("step").is_some_and(|number| number <= step),
        }
    };
    let kept: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').filter(keep).flat_map(|line| [line, b"\n"]).collect();
    Ok(lehr_model::io::write_file(path, &kept.concat())?)
}

/// Reads a metrics file. Skips a line that a crash cut.
///
/// # Errors
/// If the file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<Metrics>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("reading", path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
