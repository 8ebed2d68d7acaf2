//! `[tokenizer]` and `[model]`.

use lehr_model::{LehrParts, MlpKind};
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
    /// A new nanochat model, as transformers has it (RMSNorm without weights, normalised queries
    /// and keys, ReLU², capped logits).
    Nanochat(NanochatModel),
    /// A new model of lehr's own family: a Llama with parts that each can be switched on.
    Lehr(LehrModel),
    /// An existing run, checkpoint or Hugging Face folder.
    Load {
        /// The folder.
        path: String,
    },
}

/// A new nanochat model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NanochatModel {
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of the MLP.
    pub mlp_size: usize,
    /// Longest context.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Standard deviation of new weights.
    pub init_std: f32,
    /// Cap of the logits; 0 means none.
    #[serde(default = "default_softcap")]
    pub logit_softcap: f32,
}

/// The cap of logits in nanochat.
fn default_softcap() -> f32 {
    15.0
}

/// A new model of lehr's own family. The parts may be left out: they are off then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LehrModel {
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of the MLP.
    pub mlp_size: usize,
    /// Longest context.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Standard deviation of new weights.
    pub init_std: f32,
    /// Standard deviation of the new embedding; 0 means `init_std`.
    #[serde(default)]
    pub embedding_init_std: f32,
    /// Standard deviation of the new head; 0 means `init_std`.
    #[serde(default)]
    pub head_init_std: f32,
    /// The MLP: `swiglu` or `relu2`.
    #[serde(default)]
    pub mlp: MlpKind,
    /// Whether norms have learned scales.
    #[serde(default = "yes")]
    pub norm_weights: bool,
    /// Whether a norm follows the embedding.
    #[serde(default)]
    pub embedding_norm: bool,
    /// Whether each head of queries and keys is normalised.
    #[serde(default)]
    pub qk_norm: bool,
    /// Factor of normalised queries and keys.
    #[serde(default = "one")]
    pub qk_norm_gain: f32,
    /// Whether the output projections of attention and MLP start at 0.
    #[serde(default)]
    pub zero_init_outputs: bool,
    /// Cap of the logits; 0 means none.
    #[serde(default)]
    pub logit_softcap: f32,
    /// Whether each block scales the residual stream by a learned factor.
    #[serde(default)]
    pub residual_scalars: bool,
    /// Whether each block adds the embedded tokens times a learned factor.
    #[serde(default)]
    pub x0_scalars: bool,
    /// Whether every second block adds a vector per token to its values.
    #[serde(default)]
    pub value_embeddings: bool,
    /// Rows of the table for pairs of tokens; 0 means no table.
    #[serde(default)]
    pub bigram_rows: usize,
    /// Whether each embedding is mixed with that of the previous token.
    #[serde(default)]
    pub smear: bool,
    /// Whether the residual stream of the middle is taken off at the end.
    #[serde(default)]
    pub backout: bool,
    /// Whether keys have half of the previous token's channels.
    #[serde(default)]
    pub key_offset: bool,
}

fn yes() -> bool {
    true
}

fn one() -> f32 {
    1.0
}

impl LehrModel {
    /// Returns the parts as the model's configuration has them.
    pub(crate) fn parts(&self) -> LehrParts {
        LehrParts {
            mlp: self.mlp,
            norm_weights: self.norm_weights,
            embedding_norm: self.embedding_norm,
            qk_norm: self.qk_norm,
            qk_norm_gain: self.qk_norm_gain,
            zero_init_outputs: self.zero_init_outputs,
            final_logit_softcapping: positive(self.logit_softcap),
            residual_scalars: self.residual_scalars,
            x0_scalars: self.x0_scalars,
            value_embeddings: self.value_embeddings,
            bigram_rows: self.bigram_rows,
            smear: self.smear,
            backout: self.backout,
            key_offset: self.key_offset,
        }
    }

    fn validate(&self, faults: &mut Faults) {
        let numbers = [
            ("model.embedding_init_std", self.embedding_init_std),
            ("model.head_init_std", self.head_init_std),
            ("model.logit_softcap", self.logit_softcap),
        ];
        numbers.into_iter().for_each(|(key, value)| check_size(key, value, faults));
        let untied = self.head_init_std == 0.0 || !self.tie_embeddings;
        let expected = "0 with tie_embeddings: the head is the embedding";
        faults.check(untied, "model.head_init_std", &self.head_init_std, expected);
        let gain = self.qk_norm || self.qk_norm_gain == 1.0;
        let expected = "1 without qk_norm";
        faults.check(gain, "model.qk_norm_gain", &self.qk_norm_gain, expected);
    }
}

/// Checks a number that may be 0.
fn check_size(key: &str, value: f32, faults: &mut Faults) {
    let good = value.is_finite() && value >= 0.0;
    faults.check(good, key, &value, "a positive number, or 0");
}

/// Returns the number unless it is 0, which means none.
pub(crate) fn positive(value: f32) -> Option<f32> {
    (value > 0.0).then_some(value)
}

impl ModelConfig {
    /// Returns whether training starts from existing weights.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self, Self::Load { .. })
    }

    pub(super) fn validate(&self, recipe: &Recipe, faults: &mut Faults) {
        let seq_len = recipe.train.seq_len;
        match self {
            Self::Llama { context, .. }
            | Self::Gpt2 { context, .. }
            | Self::Nanochat(NanochatModel { context, .. })
            | Self::Lehr(LehrModel { context, .. }) => {
                let fits = seq_len <= *context;
                faults.check(fits, "train.seq_len", &seq_len, "at most model.context");
                match self {
                    Self::Lehr(model) => model.validate(faults),
                    Self::Nanochat(model) => {
                        check_size("model.logit_softcap", model.logit_softcap, faults);
                    }
                    _ => {}
                }
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
    Classify {
        /// The hidden states by which a decoder classifies; without it those of the loaded head, or
        /// that of the end token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pooling: Option<ClassifierPooling>,
    },
    /// Tagging of words: named entities.
    Tag,
}

impl ObjectiveKind {
    /// Classification by the usual hidden state.
    pub const CLASSIFY: Self = Self::Classify { pooling: None };
}

/// The hidden states by which a decoder classifies a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifierPooling {
    /// That of the end-of-document token, which texts get.
    EndOfDocument,
    /// The mean of all.
    Mean,
}

impl ClassifierPooling {
    /// Returns the name in recipes and in `config.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfDocument => "end_of_document",
            Self::Mean => "mean",
        }
    }
}
