//! Files of PyTorch: `pytorch_model.bin`, `consolidated.00.pth`, `model.pt`.
//!
//! Such a file is a pickle, a program that describes Python objects, plus the values of the
//! tensors. There are three layers. `machine` runs the program without calling anything.
//! `state_dict` and `tensor` find the weights in the result. `archive` (PyTorch ≥ 1.6, a zip file)
//! and `legacy` locate the values. Format: `torch/serialization.py` of PyTorch.

mod archive;
mod legacy;
mod machine;
mod state_dict;
mod tensor;
mod value;

use std::fmt::Display;
use std::path::Path;

use super::entry::Entry;
use crate::{Error, Result};

/// The first bytes of a zip file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Returns whether the bytes begin like a PyTorch file: a zip file, or a pickle of protocol 2 to 5.
pub(crate) fn recognises(bytes: &[u8]) -> bool {
    bytes.starts_with(ZIP_MAGIC) || matches!(bytes, [0x80, 2..=5, ..])
}

/// Lists the tensors of a whole file. `file` is its number in the checkpoint.
pub(crate) fn entries(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>> {
    let read = if bytes.starts_with(ZIP_MAGIC) { archive::entries } else { legacy::entries };
    read(bytes, file).map_err(|fault| Error::Format {
        path: path.to_owned(),
        reason: format!("not a PyTorch file of weights: {}", fault.reason),
        hint: fault.hint,
    })
}

/// A fault in a file. The caller, which knows the path, turns it into an error.
#[derive(Debug)]
struct Fault {
    reason: String,
    hint: Option<String>,
}

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None }
    }

    fn hinted(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: Some(hint.into()) }
    }

    /// Creates the fault of a truncated file.
    fn cut(wanted: u64, found: usize) -> Self {
        Self::hinted(
            format!("it ends after {found} bytes, expected {wanted}"),
            "copy or download the file again: it may be truncated",
        )
    }

    /// Adds the place of the fault.
    fn within(self, place: impl Display) -> Self {
        Self { reason: format!("{place}: {}", self.reason), ..self }
    }
}
