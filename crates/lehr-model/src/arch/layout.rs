//! Layouts of texts: positions of tokens and bidirectional prefixes.

/// The positions of a text's tokens and the length of its bidirectional prefix.
///
/// A model computes it once from the ids of a text ([`Model::layout`](crate::Model::layout));
/// forward passes only read it. It also covers the tokens generated after the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Position of each token.
    pub positions: Vec<i32>,
    /// Position of each token in the second stream, for models with two (ChatGLM-6B): 0 in the
    /// prefix, then 1, 2, … from `<sop>`.
    pub block_positions: Option<Vec<i32>>,
    /// Length of the bidirectional prefix, which all tokens of the text attend to. It must be run
    /// in one call. 0 in a causal text.
    pub prefix_len: usize,
    /// The position shared by all tokens after the prefix, if their positions do not count up.
    pub(super) frozen: Option<i32>,
}

/// The position of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPosition {
    /// Its position.
    pub position: i32,
    /// Its position in the second stream, for models with two.
    pub block_position: Option<i32>,
}

impl Layout {
    /// Lays out `n` tokens at positions 0, 1, 2, …, without a bidirectional prefix.
    #[must_use]
    pub fn causal(n: usize) -> Self {
        let positions = (0..n as i32).collect();
        Self { positions, block_positions: None, prefix_len: 0, frozen: None }
    }

    /// Lays out `n` tokens with a bidirectional prefix of `prefix_len` tokens. With `frozen`, all
    /// tokens after the prefix stand at that position. With `has_block_positions` they are counted
    /// 1, 2, … in the second stream.
    pub(super) fn with_prefix(
        n: usize,
        prefix_len: usize,
        frozen: Option<i32>,
        has_block_positions: bool,
    ) -> Self {
        let block_positions = has_block_positions.then(Vec::new);
        let mut layout = Self { positions: Vec::new(), block_positions, prefix_len, frozen };
        for index in 0..n {
            let place = layout.at(index);
            layout.positions.push(place.position);
            if let (Some(stream), Some(position)) =
                (&mut layout.block_positions, place.block_position)
            {
                stream.push(position);
            }
        }
        layout
    }

    /// Returns the number of tokens laid out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Returns whether no tokens are laid out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Returns the place of token `index` of the text, which may be a generated one.
    #[must_use]
    pub fn at(&self, index: usize) -> TokenPosition {
        let counted = index as i32;
        if index < self.prefix_len {
            let block_position = self.block_positions.as_ref().map(|_| 0);
            return TokenPosition { position: counted, block_position };
        }
        let in_block = counted - self.prefix_len as i32 + 1;
        TokenPosition {
            position: self.frozen.unwrap_or(counted),
            block_position: self.block_positions.as_ref().map(|_| in_block),
        }
    }

    /// Returns the place of the token that follows `n_generated` generated tokens.
    #[must_use]
    pub fn next(&self, n_generated: usize) -> TokenPosition {
        self.at(self.len() + n_generated)
    }
}
