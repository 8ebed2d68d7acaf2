//! The sizes of a model.

/// The sizes the rest of the program needs of any model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
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
    /// Numbers in the cache of keys and values of one sequence at full context: `2 L S K E`.
    #[must_use]
    pub fn n_cached(&self) -> u64 {
        let sizes = [self.n_layers, self.max_positions, self.n_kv_heads, self.head_dim];
        sizes.iter().fold(2u64, |n, size| n.saturating_mul(*size as u64))
    }
}
