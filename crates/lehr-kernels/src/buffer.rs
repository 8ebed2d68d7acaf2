//! Typed storage on the CPU: a block of the arena seen as a slice.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::Block;
use crate::{DType, Result};

/// A block with an element type and a length.
#[derive(Debug)]
pub struct CpuBuffer {
    block: Block,
    dtype: DType,
    len: usize,
    version: u64,
}

/// A number that no other contents of a buffer have.
fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
        let block = Block::take(len.saturating_mul(dtype.size()))?;
        Ok(Self { block, dtype, len, version: next_version() })
    }

    /// Names the contents: it changes with each call that lets somebody write, and no other buffer
    /// ever has it. So what is derived from the contents can be kept and found again.
    pub fn version(&self) -> u64 {
        self.version
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
        self.version = next_version();
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
        self.version = next_version();
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr(), self.len * self.dtype.size()) }
    }
}
