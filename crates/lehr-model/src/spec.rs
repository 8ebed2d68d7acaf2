//! The sizes of a model.

/// The sizes of a model, independent of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest context.
    pub max_positions: usize,
}

impl Spec {
    /// Returns the number of values in the KV cache of one sequence at full context: `2 L S K E`.
    #[must_use]
    pub fn n_cached(&self) -> u64 {
        let sizes = [self.n_layers, self.max_positions, self.n_kv_heads, self.head_dim];
        sizes.iter().fold(2u64, |n, size| n.saturating_mul(*size as u64))
    }
}
