//! The engine of lehr: tensors, gradients, operations and their kernels.
//!
//! A [`Tensor`] is a shape over shared storage. An operation (`ops/<name>/`) is one fat function:
//! it computes its result with a hand-written kernel and, only if an input wants a gradient,
//! records an [`Op`] that owns exactly what its backward needs. [`Tensor::backward`] walks the
//! recorded nodes from the newest to the oldest and leaves the gradients of parameters in their
//! [`Param`]s. There are no generics above the kernels and no hidden state but three: the thread
//! pool ([`threads`]), the arena ([`arena`]) and the [`no_grad`] switch of the calling thread.
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
mod params;
pub mod quant;
mod tensor;
#[cfg(test)]
mod testing;

pub use autograd::{Gradients, Op, ParamId, Recompute, is_recording, no_grad, rehearse};
use lehr_kernels as cpu;
pub use lehr_kernels::{
    DType, Device, Error, Isa, Philox, Result, Shape, arena, available_isas, gemm, isa, set_isa,
    threads,
};
pub use params::{
    Init, Load, LoadStored, NamePattern, Named, Param, ParamBuilder, ParamStore, Role, Source,
    StoredMatrix, StoredShape, Weight,
};
pub use tensor::Tensor;
