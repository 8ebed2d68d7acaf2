//! The CPU kernels of lehr: functions over slices, and what they are built from.
//!
//! [`simd`] is the vector vocabulary, [`threads`] the thread pool, [`arena`] the memory, [`gemm`]
//! the matrix product, [`bf16`] the one with 16-bit operands, [`quant`] the stored formats of
//! weights. Types that all layers of the engine share are also here: [`DType`], [`Device`],
//! [`Shape`], [`Error`].
//!
//! The crate does not know tensors, gradients or GPUs, and uses no other crate of the project.

pub mod arena;
pub mod bf16;
pub mod buffer;
mod device;
mod dtype;
mod error;
pub mod free_list;
pub mod gemm;
pub mod math;
mod memory;
pub mod quant;
mod random;
mod shape;
pub mod simd;
pub mod strided;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod vectors;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use random::Philox;
pub use shape::Shape;
pub use simd::{Isa, available_isas, isa, set_isa};

/// Numbers per task of elementwise kernels: 64 KiB, half of a second-level cache for two streams.
pub const CHUNK: usize = 1 << 14;
