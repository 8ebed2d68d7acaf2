//! Typed storage on a device.

use super::{Block, Cuda};
use lehr_kernels::{DType, Result};

/// A block with an element type and a length.
#[derive(Debug)]
pub struct CudaBuffer {
    block: Block,
    dtype: DType,
    len: usize,
}

impl CudaBuffer {
    /// Allocates `len` elements with unspecified values.
    pub fn uninit(ordinal: usize, dtype: DType, len: usize) -> Result<Self> {
        Ok(Self { block: Block::take(ordinal, len.saturating_mul(dtype.size()))?, dtype, len })
    }

    /// Copies elements from the host, given as bytes.
    pub fn upload(ordinal: usize, dtype: DType, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::uninit(ordinal, dtype, bytes.len() / dtype.size())?;
        Cuda::get(ordinal)?.upload(buffer.ptr(), bytes)?;
        Ok(buffer)
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the number of its device.
    pub fn ordinal(&self) -> usize {
        self.block.ordinal()
    }

    /// Returns the address of the first element.
    pub fn ptr(&self) -> u64 {
        self.block.ptr()
    }

    /// Returns the size of all elements.
    pub fn n_bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}
