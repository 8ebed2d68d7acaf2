//! What a plan predicts of a run, which the report compares with what was measured.

use std::path::Path;

use lehr_model::io::write_file;
use serde::{Deserialize, Serialize};

use crate::rundir::PREDICTION;
use crate::{Error, Result, RunDir};

/// What a plan predicts of a run; `None` where it predicts nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prediction {
    /// Weights of the matrix products of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<f64>,
    /// Tokens of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<f64>,
    /// Seconds of training, without evaluations and samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Tokens per second of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Held-out loss at the end, in nats per target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Held-out bits per byte at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Bytes of memory for tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl Prediction {
    /// Writes the prediction into the directory of a run that has not begun. A run that continues
    /// keeps what was predicted when it began.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(&self, dir: &RunDir) -> Result<()> {
        if dir.metrics().is_file() {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(self).expect("numbers") + "\n";
        Ok(write_file(&dir.prediction(), text.as_bytes())?)
    }

    /// Reads the prediction of a run: an empty one if it has none.
    pub(crate) fn read(dir: &RunDir) -> Result<Self> {
        Self::read_file(&dir.prediction())
    }

    /// Reads the prediction in the directory of a run: an empty one if it has none.
    pub(super) fn read_in(dir: &Path) -> Result<Self> {
        Self::read_file(&dir.join(PREDICTION))
    }

    fn read_file(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::io("reading", path)(e)),
        };
        let invalid = |e| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
        serde_json::from_str(&text).map_err(|e| Error::io("reading", path)(invalid(e)))
    }
}
