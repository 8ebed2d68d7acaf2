//! The engine of lehr: tensors, gradients, operations and their kernels.
//!
//! A [`Tensor`] is a shape over shared storage. An operation (`ops/<name>/`) is one fat function:
//! it computes its result with a hand-written kernel and, only if an input wants a gradient,
//! records an [`Op`] that owns exactly what its backward needs. [`Tensor::backward`] walks the
//! recorded nodes from the newest to the oldest and leaves the gradients of parameters in their
//! [`Param`]s. There are no generics above the kernels.
//!
//! # State that belongs to the process or the thread
//!
//! Everything else is in the values that functions take and return. Only the instruction set can
//! change a result, and only its rounding.
//!
//! | state | of | where |
//! |---|---|---|
//! | thread pool and number of threads | process | [`threads`] |
//! | memory of the CPU | process | [`arena`] |
//! | instruction set | process | [`isa`], [`set_isa`], [`tile16`] |
//! | open GPUs, each with its memory, stream, compiled kernels and workspace | process | [`cuda`] |
//! | whether GPUs are emulated | process | [`cuda::use_emulator`] |
//! | frequencies of rotary embeddings on GPUs | process | `ops/rope/cuda.rs` |
//! | recording of gradients on or off | thread | [`no_grad`], [`checkpointed_forward`] |
//! | whether the thread records a GPU's work | thread | [`cuda::Graph`], [`cuda::StepGraph`] |
//! | current context of the GPU's driver | thread | `lehr-cuda/src/driver.rs` |
//! | the last input rounded to bf16, for maps that share it | thread | `panels.rs` |
//! | intervals of the last masks, for the next layer | thread | `ops/attention/mask.rs` |
//! | products that cuBLASLt does not have in fp8 | thread | [`cuda::fp8_refused`] |
//!
//! Shapes are written with one legend throughout the project: B batch, T time, D model width,
//! H query heads, K key-value heads, E head width, F feed-forward width, V vocabulary,
//! S cached positions.
//!
//! The crate knows nothing of models, files or text.

pub mod autograd;
mod copy;
pub mod cuda;
pub mod inplace;
pub mod ops;
mod pages;
mod panels;
mod params;
pub mod quant;
mod tensor;
#[cfg(test)]
mod testing;

pub use autograd::{
    Gradients, Op, ParamId, Recompute, checkpointed_forward, is_recording, no_grad,
};
pub use lehr_kernels::{
    DType, Device, Error, Isa, Philox, Result, Shape, arena, available_isas, bf16, gemm, isa,
    set_isa, simd::tile16, threads,
};
pub use params::{
    Init, Load, LoadStored, MatrixForm, NamePattern, Named, OutputParts, OutputRuns, Param,
    ParamBuilder, ParamStore, Role, Source, StoredMatrix, StoredShape, Weight,
};
pub use tensor::Tensor;
