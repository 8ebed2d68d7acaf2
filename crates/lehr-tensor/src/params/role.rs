//! The roles of parameters.

use std::fmt;

/// The role of a parameter, set where it is built.
///
/// Optimisers, quantisation, freezing and reports read the role instead of guessing from a name:
/// names are those of published checkpoints and differ between families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The table of token vectors `[V, D]`; a tied head is applied from it.
    TokenEmbedding,
    /// A table of vectors by position.
    PositionEmbedding,
    /// A table of vectors by segment of the text (BERT's token types).
    TokenTypeEmbedding,
    /// A projection of attention: queries, keys, values, output.
    Attention,
    /// A matrix of a feed-forward layer.
    Mlp,
    /// A hidden matrix behind the last block: BERT's pooler, and the transform before its head.
    Transform,
    /// The output projection to tokens or labels, unless it is the token embedding itself.
    Head,
    /// The scale or shift of a norm.
    Norm,
    /// The bias of a linear layer.
    Bias,
    /// A matrix that an adapter adds to a linear layer.
    Adapter,
    /// A table of vectors per token that a block adds to its values.
    ValueEmbedding,
    /// A table of vectors per pair of tokens, found by a hash.
    BigramEmbedding,
    /// The small matrix of a gate.
    Gate,
    /// The learned factor of the residual stream itself. It wants a much lower learning rate than
    /// other factors, because it acts on everything before it.
    ResidualScale,
    /// Another learned factor.
    Scalar,
}

impl Role {
    /// All roles, in the order of a model.
    pub const ALL: [Self; 15] = [
        Self::TokenEmbedding,
        Self::PositionEmbedding,
        Self::TokenTypeEmbedding,
        Self::Attention,
        Self::Mlp,
        Self::Transform,
        Self::Head,
        Self::Norm,
        Self::Bias,
        Self::Adapter,
        Self::ValueEmbedding,
        Self::BigramEmbedding,
        Self::Gate,
        Self::ResidualScale,
        Self::Scalar,
    ];

    /// Whether it is a table whose rows are looked up.
    #[must_use]
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::TokenEmbedding | Self::PositionEmbedding | Self::TokenTypeEmbedding)
            || self.is_lookup()
    }

    /// Returns whether it is a table that is only looked up and has so many rows that a step
    /// touches few of them.
    #[must_use]
    pub fn is_lookup(self) -> bool {
        matches!(self, Self::ValueEmbedding | Self::BigramEmbedding)
    }

    /// Returns whether it is a matrix between the embedding and the head. fp8, Muon and
    /// quantisation apply to these.
    #[must_use]
    pub fn is_hidden_matrix(self) -> bool {
        matches!(self, Self::Attention | Self::Mlp | Self::Transform)
    }

    /// Whether it has one row per token of the vocabulary or pair of tokens, or per label: tables
    /// of embeddings and the head, a model's most sensitive matrices.
    #[must_use]
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Self::TokenEmbedding | Self::Head) || self.is_lookup()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenEmbedding => "token embedding",
            Self::PositionEmbedding => "position embedding",
            Self::TokenTypeEmbedding => "token type embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Transform => "transform",
            Self::Head => "head",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::Adapter => "adapter",
            Self::ValueEmbedding => "value embedding",
            Self::BigramEmbedding => "bigram embedding",
            Self::Gate => "gate",
            Self::ResidualScale => "residual scale",
            Self::Scalar => "scalar",
        })
    }
}
