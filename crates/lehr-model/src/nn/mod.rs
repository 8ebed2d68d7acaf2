//! Layers shared by the architectures: one struct, its builder, its forward.

mod builder;
mod embedding;
mod linear;
mod mlp;
mod norm;

pub use builder::LayerBuilder;
pub use embedding::Embedding;
pub use linear::{Linear, LinearShape};
pub use mlp::{FusedGatedMlp, GateHalf, GatedMlp, GatedMlpShape};
pub use norm::{LayerNorm, RmsNorm};
