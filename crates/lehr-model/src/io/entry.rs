//! Descriptions of the tensors in a file.

use lehr_tensor::quant::WeightFormat;

use super::change::Change;
use super::strided::Strides;

/// One tensor as described by its file. The reader has checked that the bytes lie within the file
/// and match the shape.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Number of the file in the checkpoint.
    pub(crate) file: usize,
    pub(crate) dtype: FileDtype,
    pub(crate) shape: Vec<usize>,
    /// Offset of its first byte in the file.
    pub(crate) offset: usize,
    /// Offset after its last byte.
    pub(crate) n_bytes: usize,
    /// Difference between the file's values and the tensor's. `shape` is the tensor's.
    pub(crate) change: Change,
    /// `None`: row-major, the last dimension contiguous.
    pub(crate) strides: Option<Strides>,
}

/// The type of the values in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileDtype {
    /// Weights.
    Weights(WeightFormat),
    F64,
    I64,
    I32,
    /// Any other type, by its name in the file. It can be listed but not read.
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

/// A tensor in a file, for display.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Type of its values: `F32`, `BF16`, `Q4_K`, …
    pub format: String,
    /// Its bytes in the file.
    pub n_bytes: u64,
}
