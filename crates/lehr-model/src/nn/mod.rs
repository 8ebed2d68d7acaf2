//! Layers shared by the architectures. Each is a struct with a builder and a forward function.

mod builder;
mod embedding;
mod linear;
mod mlp;
mod norm;

pub use builder::LayerBuilder;
pub use embedding::Embedding;
pub use linear::{Linear, LinearShape};
pub use mlp::{FusedGatedMlp, GateHalf, GatedMlp, MlpShape, PlainMlp};
pub use norm::{LayerNorm, RmsNorm};
