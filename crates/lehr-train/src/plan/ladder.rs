//! Families, sizes of models and vocabularies from which pre-training chooses.

use lehr_model::MlpKind;

use super::Fixed;
use crate::recipe::{LehrModel, ModelConfig, NanochatModel};

/// The families of new models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// lehr's own, with the parts that pay ("which parts pay" in docs/experiments.md).
    Lehr,
    /// The same without these parts, as other programs read it.
    Nanochat,
    Llama,
    Gpt2,
}

impl Family {
    /// The family that is fixed, otherwise lehr's own.
    pub(super) fn of(fixed: &Fixed) -> Self {
        match fixed.text("model.kind") {
            Some("llama") => Self::Llama,
            Some("gpt2") => Self::Gpt2,
            Some("nanochat") => Self::Nanochat,
            _ => Self::Lehr,
        }
    }

    /// Returns the usual width of the MLP: 4 times that of the stream, or with the third matrix of
    /// SwiGLU 8/3, a multiple of 64.
    fn mlp_size(self, width: usize, has_gate: bool) -> usize {
        match self {
            Self::Lehr | Self::Nanochat if !has_gate => 4 * width,
            _ => (8 * width).div_ceil(3).next_multiple_of(64),
        }
    }

    /// Returns the usual number of key-value heads. Small models lose more by shared keys and
    /// values than the time they save.
    fn n_kv_heads(self, n_heads: usize) -> usize {
        match self {
            Self::Llama if n_heads.is_multiple_of(2) => n_heads / 2,
            _ => n_heads,
        }
    }

    /// Returns the sizes from which pre-training chooses, smallest first.
    fn ladder(self) -> Vec<Size> {
        match self {
            Self::Lehr | Self::Nanochat => DEPTHS.map(Size::of_depth).to_vec(),
            Self::Llama | Self::Gpt2 => LLAMAS.to_vec(),
        }
    }
}

/// The size of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub(super) family: Family,
    pub(super) n_layers: usize,
    pub(super) hidden_size: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) mlp_size: usize,
    /// Matrices of the MLP: 3 with a gate.
    mlp_matrices: usize,
}

const fn size(
    n_layers: usize,
    hidden_size: usize,
    (n_heads, n_kv_heads): (usize, usize),
    mlp_size: usize,
) -> Size {
    let family = Family::Llama;
    Size { family, n_layers, hidden_size, n_heads, n_kv_heads, mlp_size, mlp_matrices: 3 }
}

/// Smallest first. Heads are 32 to 64 wide; the MLP is about 8/3 of the width, as usual for SwiGLU.
const LLAMAS: [Size; 8] = [
    size(2, 64, (2, 1), 192),
    size(3, 128, (4, 2), 384),
    size(4, 192, (6, 2), 512),
    size(4, 256, (4, 2), 704),
    size(6, 320, (5, 5), 896),
    size(6, 384, (6, 2), 1024),
    size(8, 512, (8, 4), 1408),
    size(12, 768, (12, 4), 2048),
];

/// Blocks of the models of one dial, smallest first: the width is 64 times as large.
const DEPTHS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];

/// Width of the stream per block, and of a head.
const WIDTH_PER_BLOCK: usize = 64;

/// Widths of a head, the preferred one first, for widths that are not in the ladder.
const HEAD_WIDTHS: [usize; 3] = [64, 48, 32];

/// Returns the settings of a new model's size that follow from its number of blocks: 64 times as
/// wide, with heads of width 64.
#[must_use]
pub fn sizes_of_depth(depth: usize) -> Vec<String> {
    let size = Size::of_depth(depth);
    vec![
        format!("model.n_layers={}", size.n_layers),
        format!("model.hidden_size={}", size.hidden_size),
        format!("model.n_heads={}", size.n_heads),
    ]
}

/// Returns a new model of lehr's own family with `depth` blocks.
#[must_use]
pub fn model_of_depth(depth: usize, context: usize) -> ModelConfig {
    Size::of_depth(depth).model(context)
}

/// Returns the sizes of the ladder with the sizes that are fixed. Those that do not fit together
/// are left out, unless there are no others: then the model itself says what is wrong.
pub(super) fn sizes(fixed: &Fixed) -> Vec<Size> {
    let family = Family::of(fixed);
    let all: Vec<_> = family.ladder().iter().map(|size| size.with(family, fixed)).collect();
    let consistent: Vec<_> = all.iter().copied().filter(Size::is_consistent).collect();
    if consistent.is_empty() { all } else { consistent }
}

/// Standard deviation of new weights, as in GPT-2 (Radford et al. 2019).
const INIT_STD: f32 = 0.02;

/// Standard deviations of the new embedding, which a norm follows, and head, as in nanochat.
const EMBEDDING_STD: f32 = 0.8;
const HEAD_STD: f32 = 0.001;
/// Factor of normalised queries and keys, and cap of logits, as in nanochat.
const QK_NORM_GAIN: f32 = 1.2;
const LOGIT_SOFTCAP: f32 = 15.0;

impl Size {
    /// The size that follows from the number of blocks alone.
    pub(super) fn of_depth(depth: usize) -> Self {
        Self {
            family: Family::Lehr,
            n_layers: depth,
            hidden_size: WIDTH_PER_BLOCK * depth,
            n_heads: depth,
            n_kv_heads: depth,
            mlp_size: 4 * WIDTH_PER_BLOCK * depth,
            mlp_matrices: 2,
        }
    }

    /// Replaces the sizes that are fixed, and adapts those that depend on them.
    fn with(mut self, family: Family, fixed: &Fixed) -> Self {
        let of = |key: &str| fixed.count(&format!("model.{key}"));
        self.family = family;
        let has_gate = family == Family::Llama
            || family == Family::Lehr && fixed.text("model.mlp") == Some("swiglu");
        self.mlp_matrices = if has_gate { 3 } else { 2 };
        let width = of("hidden_size").unwrap_or(self.hidden_size);
        if width != self.hidden_size || has_gate && family == Family::Lehr {
            self.mlp_size = family.mlp_size(width, has_gate);
        }
        if width != self.hidden_size {
            self.hidden_size = width;
            if let Some(of_head) =
                HEAD_WIDTHS.iter().find(|of_head| width.is_multiple_of(**of_head))
            {
                self.n_heads = width / of_head;
                self.n_kv_heads = family.n_kv_heads(self.n_heads);
            }
        }
        if let Some(n_heads) = of("n_heads").filter(|n_heads| *n_heads != self.n_heads) {
            self.n_heads = n_heads;
            self.n_kv_heads = family.n_kv_heads(n_heads);
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

    /// Returns the number of weights in the matrix products of a token: blocks and head. The lookup
    /// of an embedding is no product, so the budget of FLOPs does not count it.
    pub(super) fn matmul_weights(&self, vocab_size: usize) -> f64 {
        let d = self.hidden_size;
        let kv = d / self.n_heads.max(1) * self.n_kv_heads;
        let block = match self.family {
            Family::Gpt2 => 12 * d * d,
            _ => 2 * d * d + 2 * d * kv + self.mlp_matrices * d * self.mlp_size,
        };
        (self.n_layers * block + vocab_size * d) as f64
    }

    /// Returns the weights of the tables whose rows are looked up.
    pub(super) fn table_weights(&self, vocab_size: usize) -> f64 {
        let d = self.hidden_size;
        let rows = match self.family {
            Family::Lehr | Family::Nanochat => vocab_size,
            // Tied to the head.
            Family::Llama | Family::Gpt2 => 0,
        };
        (rows * d) as f64
    }

    /// Returns the `[model]` section of this size. That of GPT-2 is a Llama's: the override of its
    /// kind keeps what GPT-2 has, too.
    pub(super) fn model(&self, context: usize) -> ModelConfig {
        let Self { n_layers, hidden_size, n_heads, n_kv_heads, mlp_size, .. } = *self;
        match self.family {
            // The embedding is tied to the head, because a short run has too few tokens to learn
            // both with AdamW.
            Family::Llama | Family::Gpt2 => ModelConfig::Llama {
                n_layers,
                hidden_size,
                n_heads,
                n_kv_heads,
                mlp_size,
                context,
                tie_embeddings: true,
                init_std: INIT_STD,
            },
            Family::Nanochat => ModelConfig::Nanochat(NanochatModel {
                n_layers,
                hidden_size,
                n_heads,
                n_kv_heads,
                mlp_size,
                context,
                tie_embeddings: false,
                init_std: INIT_STD,
                logit_softcap: LOGIT_SOFTCAP,
            }),
            Family::Lehr => ModelConfig::Lehr(LehrModel {
                n_layers,
                hidden_size,
                n_heads,
                n_kv_heads,
                mlp_size,
                context,
                tie_embeddings: false,
                init_std: INIT_STD,
                embedding_init_std: EMBEDDING_STD,
                head_init_std: HEAD_STD,
                mlp: if self.mlp_matrices == 3 { MlpKind::SwiGlu } else { MlpKind::Relu2 },
                norm_weights: false,
                embedding_norm: true,
                qk_norm: true,
                qk_norm_gain: QK_NORM_GAIN,
                zero_init_outputs: true,
                logit_softcap: LOGIT_SOFTCAP,
                residual_scalars: true,
                x0_scalars: true,
                value_embeddings: false,
                bigram_rows: 0,
                smear: true,
                backout: true,
                key_offset: false,
            }),
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
