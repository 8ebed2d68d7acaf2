//! Files of PyTorch: `pytorch_model.bin`, `consolidated.00.pth`, `model.pt`.
//!
//! Such a file is a pickle, a program that describes Python objects, beside the numbers of the
//! tensors. In three layers: `machine` runs the program without being able to call anything,
//! `state_dict` and `tensor` find the weights in what it describes, and `archive` (PyTorch ≥ 1.6, a
//! zip file) or `legacy` say where the numbers lie. Format: `torch/serialization.py` of PyTorch.

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

/// How a zip file begins.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Whether the bytes begin as a file of PyTorch does: a zip file, or a pickle of protocol 2 to 5.
pub(crate) fn recognises(bytes: &[u8]) -> bool {
    bytes.starts_with(ZIP_MAGIC) || matches!(bytes, [0x80, 2..=5, ..])
}

/// The tensors of a whole file, of which `file` is the number in the checkpoint.
pub(crate) fn entries(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>> {
    let read = if bytes.starts_with(ZIP_MAGIC) { archive::entries } else { legacy::entries };
    read(bytes, file).map_err(|fault| Error::Format {
        path: path.to_owned(),
        reason: format!("not a file of weights that PyTorch wrote: {}", fault.reason),
        hint: fault.hint,
    })
}

/// What is wrong with a file; whoever knows its path makes an error of it.
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

    /// The file ends too early.
    fn cut(wanted: u64, found: usize) -> Self {
        Self::hinted(
            format!("it ends after {found} bytes where {wanted} should be"),
            "copy or download the file again: it may have been cut",
        )
    }

    /// Says where it was.
    fn within(self, place: impl Display) -> Self {
        Self { reason: format!("{place}: {}", self.reason), ..self }
    }
}
