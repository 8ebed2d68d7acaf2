//! Sizes of models and vocabularies from which pre-training chooses.

use super::Fixed;
use crate::recipe::ModelConfig;

/// The size of a Llama-type model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub(super) n_layers: usize,
    pub(super) hidden_size: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) mlp_size: usize,
}

const fn size(
    n_layers: usize,
    hidden_size: usize,
    (n_heads, n_kv_heads): (usize, usize),
    mlp_size: usize,
) -> Size {
    Size { n_layers, hidden_size, n_heads, n_kv_heads, mlp_size }
}

/// Smallest first. Heads are 32 to 64 wide; the MLP is about 8/3 of the width, as usual for SwiGLU.
const LADDER: [Size; 8] = [
    size(2, 64, (2, 1), 192),
    size(3, 128, (4, 2), 384),
    size(4, 192, (6, 2), 512),
    size(4, 256, (4, 2), 704),
    size(6, 320, (5, 5), 896),
    size(6, 384, (6, 2), 1024),
    size(8, 512, (8, 4), 1408),
    size(12, 768, (12, 4), 2048),
];

/// Widths of a head, the preferred one first, for widths that are not in the ladder.
const HEAD_WIDTHS: [usize; 3] = [64, 48, 32];

/// Returns the usual width of the MLP of SwiGLU: 8/3 of the width, a multiple of 64.
fn mlp_size_for(width: usize) -> usize {
    (8 * width).div_ceil(3).next_multiple_of(64)
}

/// Returns the usual number of key-value heads.
fn n_kv_heads_for(n_heads: usize) -> usize {
    if n_heads.is_multiple_of(2) { n_heads / 2 } else { n_heads }
}

/// Returns the sizes of the ladder with the sizes that are fixed. Those that do not fit together
/// are left out, unless there are no others: then the model itself says what is wrong.
pub(super) fn sizes(fixed: &Fixed) -> Vec<Size> {
    let all: Vec<_> = LADDER.iter().map(|size| size.with(fixed)).collect();
    let consistent: Vec<_> = all.iter().copied().filter(Size::is_consistent).collect();
    if consistent.is_empty() { all } else { consistent }
}

/// Standard deviation of new weights, as in GPT-2 (Radford et al. 2019).
const INIT_STD: f32 = 0.02;

impl Size {
    /// Replaces the sizes that are fixed, and adapts those that depend on them.
    fn with(mut self, fixed: &Fixed) -> Self {
        let of = |key: &str| fixed.count(&format!("model.{key}"));
        if let Some(width) = of("hidden_size").filter(|width| *width != self.hidden_size) {
            self.hidden_size = width;
            self.mlp_size = mlp_size_for(width);
            if let Some(of_head) =
                HEAD_WIDTHS.iter().find(|of_head| width.is_multiple_of(**of_head))
            {
                self.n_heads = width / of_head;
                self.n_kv_heads = n_kv_heads_for(self.n_heads);
            }
        }
        if let Some(n_heads) = of("n_heads").filter(|n_heads| *n_heads != self.n_heads) {
            self.n_heads = n_heads;
            self.n_kv_heads = n_kv_heads_for(n_heads);
        }
        self.n_kv_heads = of("n_kv_heads").unwrap_or(self.n_kv_heads);
        self.n_layers = of("n_layers").unwrap_or(self.n_layers);
        self.mlp_size = of("mlp_size").unwrap_or(self.mlp_size);
        self
    }

    /// Returns whether the heads divide the width into even parts, and key-value heads the heads.
    fn is_consistent(&self) -> bool {
        let Self { hidden_size, n_heads, n_kv_heads, .. } = *self;
        hidden_size.is_multiple_of(2 * n_heads) && n_heads.is_multiple_of(n_kv_heads)
    }

    /// Returns [`Size::matmul_weights`] of a GPT-2-type model, whose MLP is four times as wide.
    pub(super) fn gpt2_matmul_weights(&self, vocab_size: usize) -> f64 {
        let d = self.hidden_size;
        (self.n_layers * 12 * d * d + vocab_size * d) as f64
    }

    /// Returns the number of weights in the matrix products of a token: blocks and head. The lookup
    /// of an embedding is no product, so the budget of FLOPs does not count it.
    pub(super) fn matmul_weights(&self, vocab_size: usize) -> f64 {
        let d = self.hidden_size;
        let kv = d / self.n_heads.max(1) * self.n_kv_heads;
        let block = 2 * d * d + 2 * d * kv + 3 * d * self.mlp_size;
        (self.n_layers * block + vocab_size * d) as f64
    }

    /// Returns the `[model]` section of this size. The embedding is tied to the head, because a
    /// short run has too few tokens to learn both.
    pub(super) fn model(&self, context: usize) -> ModelConfig {
        let Self { n_layers, hidden_size, n_heads, n_kv_heads, mlp_size } = *self;
        ModelConfig::Llama {
            n_layers,
            hidden_size,
            n_heads,
            n_kv_heads,
            mlp_size,
            context,
            tie_embeddings: true,
            init_std: INIT_STD,
        }
    }
}

/// Vocabulary sizes and the bytes of text that each needs, largest first. With less text, most
/// weights would be in rows that the text rarely uses.
const VOCABULARIES: [(usize, usize); 4] =
    [(64_000_000, 16_384), (8_000_000, 8192), (1_500_000, 4096), (300_000, 2048)];

/// Vocabulary size for less text.
const VOCABULARY_MIN: usize = 512;

/// Returns the vocabulary size for `bytes` of text.
pub(super) fn vocabulary_for(bytes: usize) -> usize {
    let fits = |(least, _): &&(usize, usize)| bytes >= *least;
    VOCABULARIES.iter().find(fits).map_or(VOCABULARY_MIN, |(_, size)| *size)
}

/// Bytes of text per token of a byte-level BPE with [`VOCABULARY_MIN`] ids.
const BYTES_PER_TOKEN: f64 = 1.3;

/// Growth of this ratio each time the vocabulary doubles. Both are estimates, because the tokenizer
/// is trained only after planning. The planned number of tokens has the same accuracy.
const BYTES_PER_TOKEN_DOUBLED: f64 = 0.45;

/// Estimates the bytes of text per token of a vocabulary.
pub(super) fn bytes_per_token(vocab_size: usize) -> f64 {
    let doublings = (vocab_size as f64 / VOCABULARY_MIN as f64).log2();
    BYTES_PER_TOKEN + doublings * BYTES_PER_TOKEN_DOUBLED
}
