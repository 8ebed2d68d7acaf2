//! Everything that knows the CPU: memory, threads, vectors, matrix products.

pub mod arena;
pub(crate) mod buffer;
pub mod gemm;
pub(crate) mod math;
pub(crate) mod simd;
pub mod threads;
