//! `[tokenizer]` and `[model]`.

use serde::{Deserialize, Serialize};

use super::{Faults, Recipe};

/// `[tokenizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// A byte-level BPE trained on the training documents.
    Train {
        /// Number of ids, special tokens included.
        vocab_size: usize,
        /// The pre-tokenization pattern: `gpt2` or `gpt4`.
        pattern: String,
    },
    /// An existing `tokenizer.json`.
    File {
        /// The file.
        path: String,
    },
    /// The tokenizer of the loaded model.
    Model,
}

impl TokenizerConfig {
    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        match self {
            Self::Train { pattern, .. } => {
                let known = pattern == "gpt2" || pattern == "gpt4";
                faults.check(known, "tokenizer.pattern", pattern, "gpt2 or gpt4");
            }
            Self::File { path } => {
                faults.check(!path.is_empty(), "tokenizer.path", &"empty", "a tokenizer.json");
            }
            Self::Model => {
                let loads = recipe.model.is_loaded();
                faults.check(loads, "tokenizer.kind", &"model", "train or file for a new model");
            }
        }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelConfig {
    /// A new Llama-type model (RoPE, RMSNorm, SwiGLU, grouped-query attention).
    Llama {
        /// Blocks.
        n_layers: usize,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Query heads.
        n_heads: usize,
        /// Key-value heads.
        n_kv_heads: usize,
        /// Width of the MLP.
        mlp_size: usize,
        /// Longest context.
        context: usize,
        /// Whether the head is the embedding.
        tie_embeddings: bool,
        /// Standard deviation of new weights.
        init_std: f32,
    },
    /// A new GPT-2-type model (learned positions, LayerNorm, GELU).
    Gpt2 {
        /// Blocks.
        n_layers: usize,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Heads.
        n_heads: usize,
        /// Longest context.
        context: usize,
        /// Standard deviation of new weights.
        init_std: f32,
    },
    /// An existing run, checkpoint or Hugging Face folder.
    Load {
        /// The folder.
        path: String,
    },
}

impl ModelConfig {
    /// Returns whether training starts from existing weights.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self, Self::Load { .. })
    }

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let seq_len = recipe.train.seq_len;
        match self {
            Self::Llama { context, .. } | Self::Gpt2 { context, .. } => {
                let fits = seq_len <= *context;
                faults.check(fits, "train.seq_len", &seq_len, "at most model.context");
            }
            Self::Load { path } => {
                faults.check(!path.is_empty(), "model.path", &"empty", "a run or a model's folder");
            }
        }
    }
}

/// `[objective]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObjectiveKind {
    /// Prediction of the next token of documents.
    NextToken,
    /// Prediction of the assistant's tokens in conversations.
    Chat,
    /// Classification of texts.
    Classify,
}
