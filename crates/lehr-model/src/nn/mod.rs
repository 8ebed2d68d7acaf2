//! Layers shared by the architectures: one struct, its builder, its forward.

mod embedding;
mod linear;
mod mlp;
mod norm;

pub use embedding::Embedding;
pub use linear::Linear;
pub use mlp::GatedMlp;
pub use norm::{LayerNorm, RmsNorm};
