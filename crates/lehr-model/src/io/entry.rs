//! What a file says of its tensors.

use lehr_tensor::quant::WeightFormat;

use super::change::Change;
use super::strided::Strides;

/// One tensor of a file, as the file describes it. The reader that makes one has checked that the
/// bytes lie within the file and have the length of the shape.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Which of the checkpoint's files.
    pub(crate) file: usize,
    pub(crate) dtype: FileDtype,
    pub(crate) shape: Vec<usize>,
    /// Where in the file its bytes begin.
    pub(crate) offset: usize,
    /// Up to where its bytes reach.
    pub(crate) n_bytes: usize,
    /// How the file's numbers differ from the tensor's. `shape` is the tensor's.
    pub(crate) change: Change,
    /// None: row-major, the last dimension contiguous.
    pub(crate) strides: Option<Strides>,
}

/// What the numbers of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileDtype {
    /// Weights.
    Weights(WeightFormat),
    F64,
    I64,
    I32,
    /// Anything else, by the name the file gives it: it can be listed, not read.
    Other(&'static str),
}

impl std::fmt::Display for FileDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Weights(format) => write!(f, "{format:?}"),
            Self::Other(name) => f.write_str(name),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its numbers are: `F32`, `BF16`, `Q4_K`, …
    pub format: String,
    /// Bytes of it in the file.
    pub n_bytes: u64,
}
