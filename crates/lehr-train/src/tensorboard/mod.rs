//! Event files for TensorBoard: a run's numbers, samples and recipe.
//!
//! Each process that runs or continues a run writes a file of its own, named so that they are read
//! in order. When a run continues from an earlier step, the events after that step are removed from
//! the older files, as the lines of `metrics.jsonl` are. A reader that is open meanwhile hears of
//! it too: the new file begins with an event that makes it drop them.

mod format;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use format::{Content, Value, encode, records, step_of};
use lehr_model::io::write_file;

use crate::{Error, Evaluation, Metrics, Result};

/// What the name of an event file begins with. TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// The event files of a run.
pub(crate) struct EventFiles {
    dir: PathBuf,
    /// The file of this process, once there is an event for it.
    file: Option<(PathBuf, File)>,
    /// Number of steps after which this process continues.
    start: u64,
    /// The text that a new run begins with.
    recipe: String,
}

impl EventFiles {
    /// Opens the event files in `dir` for a run that continues after `step`, and removes the events
    /// after it.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(crate) fn open(dir: &Path, step: u64, recipe: &str) -> Result<Self> {
        let mut files =
            Self { dir: dir.to_owned(), file: None, start: step, recipe: recipe.to_owned() };
        files.go_back(step)?;
        Ok(files)
    }

    /// Continues after `step`: removes the events after it, and begins a new file.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(crate) fn go_back(&mut self, step: u64) -> Result<()> {
        (self.file, self.start) = (None, step);
        for path in self.paths()? {
            let bytes = std::fs::read(&path).map_err(Error::io("reading", &path))?;
            let mut kept = Vec::new();
            for record in records(&bytes) {
                let keeps = step_of(record.data).is_some_and(|s| s <= step);
                kept.extend_from_slice(if keeps { record.bytes } else { &[] });
            }
            if step == 0 {
                // A new run begins with everything.
                std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
            } else if kept.len() < bytes.len() {
                write_file(&path, &kept)?;
            }
        }
        Ok(())
    }

    /// Lists the files in the order in which TensorBoard reads them.
    fn paths(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("reading", &self.dir)(e)),
        };
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(PREFIX) && !name.ends_with(".partial")
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths: Vec<_> = paths.filter(is_ours).collect();
        paths.sort();
        Ok(paths)
    }

    /// Writes the numbers of a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn step(&mut self, metrics: &Metrics) -> Result<()> {
        let mut values = vec![
            Value::scalar("train/loss", metrics.loss),
            Value::scalar("train/grad_norm", metrics.grad_norm),
            Value::scalar("train/learning_rate", f64::from(metrics.lr)),
            Value::scalar("speed/tokens_per_s", metrics.tokens_per_s),
            Value::scalar("speed/gflops", metrics.gflops),
            Value::scalar("memory/bytes", metrics.memory_bytes as f64),
        ];
        let own = |(name, value): (&String, &f64)| Value::scalar(&format!("train/{name}"), *value);
        values.extend(metrics.metrics.iter().map(own));
        values.extend(metrics.eval.as_ref().map(held_out).unwrap_or_default());
        self.write(metrics.step, &Content::Summary(values))
    }

    /// Writes a sample.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn sample(&mut self, step: u64, prompt: &str, text: &str) -> Result<()> {
        let value = Value::text(&format!("sample/{prompt}"), &as_markdown(text));
        self.write(step, &Content::Summary(vec![value]))
    }

    /// Makes the events so far durable.
    ///
    /// # Errors
    /// If the system fails to.
    pub(crate) fn sync(&self) -> Result<()> {
        match &self.file {
            Some((path, file)) => file.sync_all().map_err(Error::io("syncing", path)),
            None => Ok(()),
        }
    }

    fn write(&mut self, step: u64, content: &Content) -> Result<()> {
        let (path, file) = match &mut self.file {
            Some(file) => file,
            None => {
                let begun = self.begin()?;
                self.file.insert(begun)
            }
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let bytes = encode(seconds.as_secs_f64(), step, content);
        // One call for each event, so that a reader seldom sees half of one.
        file.write_all(&bytes).map_err(Error::io("writing", path))
    }

    /// Creates the file of this process, with the events that it begins with.
    fn begin(&self) -> Result<(PathBuf, File)> {
        std::fs::create_dir_all(&self.dir).map_err(Error::io("creating", &self.dir))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let old = self.paths()?;
        // Names have to rise, also if the clock was set back.
        let last = old.last().and_then(|path| numbers(path)).unwrap_or((0, 0));
        let name = format!("{PREFIX}{:010}.{:06}.lehr", now.as_secs().max(last.0), last.1 + 1);
        let path = self.dir.join(name);
        let created = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut file = created.map_err(Error::io("creating", &path))?;
        let time = now.as_secs_f64();
        let mut bytes = encode(time, 0, &Content::Version("brain.Event:2"));
        match self.start {
            0 => {
                let recipe = Value::text("recipe", &as_markdown(&self.recipe));
                bytes.extend(encode(time, 0, &Content::Summary(vec![recipe])));
            }
            step => bytes.extend(encode(time, step + 1, &Content::Start)),
        }
        file.write_all(&bytes).map_err(Error::io("writing", &path))?;
        Ok((path, file))
    }
}

/// Returns the time and the number in the name of a file.
fn numbers(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let mut parts = name.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn held_out(evaluation: &Evaluation) -> Vec<Value> {
    let known = [
        ("validation/loss", Some(evaluation.loss)),
        ("validation/bits_per_byte", evaluation.bits_per_byte),
        ("validation/accuracy", evaluation.accuracy),
        ("validation/entity_f1", evaluation.entities.map(|entities| entities.f1)),
    ];
    let known = known.into_iter().filter_map(|(tag, value)| Some(Value::scalar(tag, value?)));
    let own = |(name, value): (&String, &f64)| Value::scalar(&format!("validation/{name}"), *value);
    known.chain(evaluation.metrics.iter().map(own)).collect()
}

/// Indents a text, so that Markdown shows it unchanged.
fn as_markdown(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests;
