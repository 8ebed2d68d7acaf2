//! Typed storage on the CPU: a block of the arena seen as a slice.

use crate::arena::Block;
use crate::{DType, Result};

/// A block with an element type and a length.
#[derive(Debug)]
pub struct CpuBuffer {
    block: Block,
    dtype: DType,
    len: usize,
}

/// Element types a buffer can be seen as.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type as a value.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

impl CpuBuffer {
    /// Allocates `len` elements with unspecified values.
    pub fn uninit(dtype: DType, len: usize) -> Result<Self> {
        Ok(Self { block: Block::take(len.saturating_mul(dtype.size()))?, dtype, len })
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the elements.
    ///
    /// # Panics
    /// If `T` is not the type of the elements.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "a buffer is read as the type it holds");
        // SAFETY: the block has `len` elements, is aligned to 64 bytes and, coming from a zeroed
        // mapping, always holds initialised bytes; every bit pattern of `T` is valid.
        unsafe { std::slice::from_raw_parts(self.block.ptr().cast(), self.len) }
    }

    /// Returns the elements for writing.
    ///
    /// # Panics
    /// If `T` is not the type of the elements.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "a buffer is written as the type it holds");
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr().cast(), self.len) }
    }

    /// Returns the elements as bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as above; any byte is a valid u8.
        unsafe { std::slice::from_raw_parts(self.block.ptr(), self.len * self.dtype.size()) }
    }

    /// Returns the elements as bytes for writing. Every bit pattern is a valid element.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr(), self.len * self.dtype.size()) }
    }
}
