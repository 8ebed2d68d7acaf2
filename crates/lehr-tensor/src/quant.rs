//! Weights in stored forms, as tensors see them: the formats of [`lehr_kernels::quant`], and a
//! matrix in one of them that may have a copy on a GPU.
//!
//! [`WeightFormat`] is a format of GGUF files: bytes to numbers and numbers to bytes.
//! [`QMatrix`] is a weight matrix in such a format or one of our own ([`MatrixFormat`]). Its bytes
//! stay where they lie: [`Tensor::linear_q`] multiplies with it and [`QMatrix::embedding`] looks
//! rows up.
//!
//! ```
//! # use std::sync::Arc;
//! # use lehr_tensor::{Tensor, quant::{QMatrix, WeightFormat}};
//! # fn main() -> lehr_tensor::Result<()> {
//! // A matrix that lies in a file: the mapping is shared, nothing is copied.
//! let file: Arc<Vec<u8>> = Arc::new(vec![0; 1024 + 2 * 34]);
//! let w = QMatrix::new(WeightFormat::Q8_0, 2, 32, file, 1024..1024 + 2 * 34, Vec::new())?;
//! let y = Tensor::zeros([5, 32])?.linear_q(&w, None)?;
//! assert_eq!(*y.shape(), [5, 2]);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, PoisonError};

use lehr_kernels::bf16::Panels;
pub use lehr_kernels::quant::{
    Activations, MatrixFormat, Owner, Scaling, StoredMatrix, WeightFormat,
};
pub(crate) use lehr_kernels::quant::{IQ4, NF4, NF4_GROUP};

use crate::panels::WeightPanels;
use crate::{DType, Device, Result, Tensor};

/// A weight matrix `[rows, cols]` (outputs × inputs) in a stored form.
///
/// It reads as the [`StoredMatrix`] it holds. Cloning shares the bytes and the copy on a GPU.
#[derive(Clone)]
pub struct QMatrix {
    stored: StoredMatrix,
    /// A copy on a GPU, shared by all clones.
    on_gpu: Arc<Mutex<Option<Arc<OnGpu>>>>,
    /// Copies in the layouts of products in bf16 on the CPU, if they are asked for.
    panels: Arc<Mutex<Option<Arc<WeightPanels>>>>,
}

/// Codes and scales on a GPU, and what products with them compute in.
pub(crate) struct OnGpu {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    /// The bytes, as whole words.
    pub(crate) codes: Tensor,
    pub(crate) scales: Tensor,
}

impl QMatrix {
    /// Takes the matrix whose codes are the bytes `range` of `owner`: [`StoredMatrix::new`].
    ///
    /// # Errors
    /// If the columns are not whole blocks, or the bytes or scales are more or fewer than the
    /// format takes.
    pub fn new(
        format: impl Into<MatrixFormat>,
        rows: usize,
        cols: usize,
        owner: Owner,
        range: Range<usize>,
        scales: Vec<f32>,
    ) -> Result<Self> {
        StoredMatrix::new(format, rows, cols, owner, range, scales).map(Self::from)
    }

    /// Stores `values`, `[rows, cols]` row-major, in parallel: [`StoredMatrix::from_f32`].
    ///
    /// # Errors
    /// If the columns are not whole blocks or the number of values is not `rows · cols`.
    pub fn from_f32(
        values: &[f32],
        rows: usize,
        cols: usize,
        format: impl Into<MatrixFormat>,
    ) -> Result<Self> {
        StoredMatrix::from_f32(values, rows, cols, format).map(Self::from)
    }

    /// Returns the same matrix, whose products see activations in another way.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { stored: self.stored.with_activations(activations), ..self }
    }

    /// Copies codes and scales to a GPU, where products with activations of `dtype` then are; or
    /// forgets the copy, for the CPU. There, products with a matrix of floats are in bf16 if that
    /// is `dtype`; other formats have their own products.
    ///
    /// # Errors
    /// If the device's memory runs out or it fails.
    pub fn to_device(&self, device: Device, dtype: DType) -> Result<()> {
        let in_bf16 = device == Device::Cpu && dtype == DType::BF16 && self.format().is_float();
        *self.panels.lock().unwrap_or_else(PoisonError::into_inner) = in_bf16.then(Arc::default);
        let mut on_gpu = self.on_gpu.lock().unwrap_or_else(PoisonError::into_inner);
        *on_gpu = match device {
            Device::Cpu => None,
            Device::Cuda(_) => {
                let codes = Tensor::from_bytes(self.bytes())?.to_device(device)?;
                let scales =
                    Tensor::from_slice(self.scales(), [self.scales().len()])?.to_device(device)?;
                Some(Arc::new(OnGpu { device, dtype, codes, scales }))
            }
        };
        Ok(())
    }

    /// Returns the copy on a GPU, if there is one.
    pub(crate) fn on_gpu(&self) -> Option<Arc<OnGpu>> {
        self.on_gpu.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether products on the CPU are in bf16.
    pub(crate) fn is_in_bf16(&self) -> bool {
        self.panels.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// This matrix, or its transpose, in bf16 as the right operand of a product.
    ///
    /// # Panics
    /// Without [`QMatrix::is_in_bf16`].
    pub(crate) fn right_operand(&self, is_transposed: bool) -> Result<Arc<Panels>> {
        let panels = self.panels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        panels.expect("a weight in bf16 has panels").get_stored(&self.stored, is_transposed)
    }

    /// Returns all numbers, f32 `[rows, cols]` on the CPU.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn to_f32(&self) -> Result<Tensor> {
        let mut values = Tensor::uninit([self.rows(), self.cols()], DType::F32)?;
        self.dequantize_rows(0..self.rows(), values.data_mut());
        Ok(values)
    }
}

impl From<StoredMatrix> for QMatrix {
    fn from(stored: StoredMatrix) -> Self {
        Self { stored, on_gpu: Arc::default(), panels: Arc::default() }
    }
}

impl Deref for QMatrix {
    type Target = StoredMatrix;
    fn deref(&self) -> &StoredMatrix {
        &self.stored
    }
}

impl fmt::Debug for QMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QMatrix({} [{}, {}])", self.format(), self.rows(), self.cols())
    }
}
