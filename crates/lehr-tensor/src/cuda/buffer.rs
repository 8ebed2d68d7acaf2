//! Typed storage on a device.

use super::{Block, Cuda};
use crate::{DType, Result};

/// A block with an element type and a length.
#[derive(Debug)]
pub(crate) struct CudaBuffer {
    block: Block,
    dtype: DType,
    len: usize,
}

impl CudaBuffer {
    /// Room for `len` elements with unspecified values.
    pub(crate) fn uninit(ordinal: usize, dtype: DType, len: usize) -> Result<Self> {
        Ok(Self { block: Block::take(ordinal, len.saturating_mul(dtype.size()))?, dtype, len })
    }

    /// The same elements as on the host, given as bytes.
    pub(crate) fn upload(ordinal: usize, dtype: DType, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::uninit(ordinal, dtype, bytes.len() / dtype.size())?;
        Cuda::get(ordinal)?.upload(buffer.ptr(), bytes)?;
        Ok(buffer)
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.block.ordinal()
    }

    pub(crate) fn ptr(&self) -> u64 {
        self.block.ptr()
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}
