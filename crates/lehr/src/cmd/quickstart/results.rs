//! Finished measurements, one line of JSON each, so an interrupted quickstart repeats none.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lehr_model::io::write_file;
use serde_json::{Value, json};

/// Named numbers.
pub(super) struct Results {
    path: PathBuf,
    values: BTreeMap<String, f64>,
}

impl Results {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        // If a crash cut a line, the measurement runs again and gets a new line.
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        if end < text.len() {
            write_file(path, &text.as_bytes()[..end])?;
        }
        let entry = |line: &str| {
            let json: Value = serde_json::from_str(line).ok()?;
            Some((json.get("name")?.as_str()?.to_owned(), json.get("value")?.as_f64()?))
        };
        Ok(Self { path: path.to_owned(), values: text.lines().filter_map(entry).collect() })
    }

    pub(super) fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    pub(super) fn all(&self) -> &BTreeMap<String, f64> {
        &self.values
    }

    /// The values of `name/1`, `name/2`, …: one per seed.
    pub(super) fn seeds(&self, name: &str) -> Vec<f64> {
        super::plan::SEEDS.iter().filter_map(|seed| self.get(&format!("{name}/{seed}"))).collect()
    }

    pub(super) fn put(&mut self, name: &str, value: f64) -> Result<()> {
        let line = json!({ "name": name, "value": value }).to_string() + "\n";
        let write = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(line.as_bytes())
        };
        write().with_context(|| format!("writing {}", self.path.display()))?;
        self.values.insert(name.to_owned(), value);
        Ok(())
    }
}
