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
mod cpu;
pub mod cuda;
mod device;
mod dtype;
mod error;
mod free_list;
pub mod inplace;
pub mod ops;
mod params;
pub mod quant;
mod random;
mod shape;
mod tensor;
#[cfg(test)]
mod testing;

pub use autograd::{Gradients, Op, ParamId, Recompute, is_recording, no_grad, rehearse};
pub use cpu::arena;
pub use cpu::gemm;
pub use cpu::simd::{Isa, available_isas, isa, set_isa};
pub use cpu::threads;
pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use params::{
    Init, Load, LoadStored, NamePattern, Named, Param, ParamBuilder, ParamStore, Role, Source,
    StoredMatrix, StoredShape, Weight,
};
pub use random::Philox;
pub use shape::Shape;
pub use tensor::Tensor;
