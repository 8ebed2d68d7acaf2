//! The batch: the output of every loader and the input of every objective.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// One micro-batch, row-major `[B, T]`, as plain vectors.
///
/// A row holds one or more *segments* (documents, conversations or texts), then padding. No token
/// may attend to a token of another segment. Each padding token is a segment of its own, with no
/// target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows, B.
    pub batch_size: usize,
    /// Tokens of a row, T.
    pub seq_len: usize,
    /// Token ids, `[B*T]`.
    pub tokens: Vec<i32>,
    /// The target at each position, `[B*T]`: the next token, or the class of this token for token
    /// classification; [`Batch::IGNORE`] for none.
    pub targets: Vec<i32>,
    /// Position within the segment, `[B*T]`.
    pub positions: Vec<i32>,
    /// Second stream of positions, within a block of the segment (GLM), `[B*T]`; empty for models
    /// with one stream.
    pub block_positions: Vec<i32>,
    /// Index in the row at which the token's segment begins, `[B*T]`. Attention never reads tokens
    /// before it.
    pub segment_starts: Vec<i32>,
    /// For each token, the length of the bidirectional prefix of its segment, `[B*T]`; empty for
    /// models without such a prefix.
    pub prefix_lens: Vec<i32>,
    /// The sequences that a loss treats as wholes, such as labelled texts or answers to compare, in
    /// the order of rows and positions. Empty if only `targets` count.
    pub sequences: Vec<Sequence>,
    /// UTF-8 bytes of all tokens in `targets`, the denominator of bits per byte. Special tokens
    /// count 0 bytes.
    pub target_bytes: u64,
    /// Number of items over which the loss is a mean: supervised tokens, labelled sequences or
    /// groups.
    pub n_targets: usize,
}

/// A segment of a batch with its group and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its row.
    pub row: usize,
    /// Position of its first token in the row.
    pub start: usize,
    /// Position after its last token in the row.
    pub end: usize,
    /// Its group, from 0. A loss compares the sequences of a group, such as the answers to one
    /// prompt, in their order. A single sequence is a group of one.
    pub group: usize,
    /// Its classes: one, or several for multi-label classification.
    pub labels: Vec<i32>,
}

/// Positions and prefix of a segment, for models whose positions are not 0, 1, 2, ….
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Position of each token.
    pub positions: Vec<i32>,
    /// Second stream of positions; `None` for models with one.
    pub block_positions: Option<Vec<i32>>,
    /// Length of the bidirectional prefix; 0 = none.
    pub prefix_len: usize,
}

/// Computes the layout of a segment from its ids.
#[derive(Clone)]
pub struct LayoutRule(Arc<LayoutFn>);

type LayoutFn = dyn Fn(&[u32]) -> std::result::Result<Layout, String> + Send + Sync;

impl LayoutRule {
    /// Creates a layout function from `rule`, whose error names the fault of the ids.
    pub fn new(
        rule: impl Fn(&[u32]) -> std::result::Result<Layout, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(rule))
    }
}

impl fmt::Debug for LayoutRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayoutRule")
    }
}

impl Batch {
    /// The target of a position that has no loss.
    pub const IGNORE: i32 = -100;

    /// Creates a batch of padding only.
    pub fn padding(batch_size: usize, seq_len: usize, pad: i32) -> Self {
        let n = batch_size * seq_len;
        let within_row = (0..batch_size).flat_map(|_| 0..seq_len);
        Self {
            batch_size,
            seq_len,
            tokens: vec![pad; n],
            targets: vec![Self::IGNORE; n],
            positions: vec![0; n],
            segment_starts: within_row.map(int).collect(),
            ..Self::default()
        }
    }

    /// Returns the flat index of the last token of each sequence.
    pub fn sequence_ends(&self) -> Vec<i32> {
        self.sequences.iter().map(|s| int(s.row * self.seq_len + s.end - 1)).collect()
    }

    /// Checks that all parts have matching sizes and valid indices.
    ///
    /// # Errors
    /// If a part has another size, or an index is outside its row or segment.
    pub fn validate(&self) -> Result<()> {
        let fault = |reason: String| Err(Error::Batch { reason });
        let n = self.batch_size * self.seq_len;
        let parts = [
            ("tokens", self.tokens.len(), false),
            ("targets", self.targets.len(), false),
            ("positions", self.positions.len(), false),
            ("block_positions", self.block_positions.len(), true),
            ("segment_starts", self.segment_starts.len(), false),
            ("prefix_lens", self.prefix_lens.len(), true),
        ];
        for (name, len, may_be_empty) in parts {
            if len != n && !(may_be_empty && len == 0) {
                return fault(format!("{name} has {len} elements, expected {n}"));
            }
        }
        for at in 0..n {
            let (row, t) = (at / self.seq_len, at % self.seq_len);
            let start = self.segment_starts[at];
            // The first token of a segment is its own start.
            let first = usize::try_from(start).ok().filter(|first| *first <= t);
            let is_first = |first: &usize| self.segment_starts[row * self.seq_len + first] == start;
            if first.filter(is_first).is_none() {
                return fault(format!("row {row}: the segment of token {t} begins at {start}"));
            }
            if self.positions[at] < 0 {
                let found = self.positions[at];
                return fault(format!("row {row}: the position of token {t} is {found}"));
            }
            if self.prefix_lens.get(at).is_some_and(|len| *len < 0) {
                let found = self.prefix_lens[at];
                return fault(format!("row {row}: the prefix of token {t} has {found} tokens"));
            }
        }
        self.validate_sequences()
    }

    fn validate_sequences(&self) -> Result<()> {
        let mut n_groups = 0;
        for (index, sequence) in self.sequences.iter().enumerate() {
            let Sequence { row, start, end, group, .. } = *sequence;
            let within = row < self.batch_size && start < end && end <= self.seq_len;
            let starts = || &self.segment_starts[row * self.seq_len..][start..end];
            if !within || starts().iter().any(|at| *at != int(start)) {
                let reason = format!("sequence {index} is {start}..{end} of row {row}: no segment");
                return Err(Error::Batch { reason });
            }
            // The sequences of a group are consecutive, so one pass can compare them.
            if group != n_groups && group + 1 != n_groups {
                let reason =
                    format!("sequence {index} is of group {group} after {n_groups} groups");
                return Err(Error::Batch { reason });
            }
            n_groups = group + 1;
        }
        Ok(())
    }

    /// Writes a segment that begins at position `start` of `row`.
    pub(crate) fn put_segment(
        &mut self,
        row: usize,
        start: usize,
        ids: &[u32],
        layout: Option<&LayoutRule>,
    ) -> Result<()> {
        let at = row * self.seq_len + start;
        for (t, token) in ids.iter().enumerate() {
            self.tokens[at + t] = id(*token);
            self.positions[at + t] = int(t);
            self.segment_starts[at + t] = int(start);
        }
        let Some(layout) = layout else { return Ok(()) };
        let layout = (layout.0)(ids).map_err(|reason| Error::Layout { reason })?;
        self.lay_out(at, ids.len(), &layout)
    }

    /// Sets the positions of `len` tokens, starting at the flat index `at`.
    fn lay_out(&mut self, at: usize, len: usize, layout: &Layout) -> Result<()> {
        let Layout { positions, block_positions, prefix_len } = layout;
        let blocks = block_positions.as_ref().map_or(len, Vec::len);
        if positions.len() != len || blocks != len || *prefix_len > len {
            let found = positions.len();
            let reason = format!(
                "{found} and {blocks} positions and a prefix of {prefix_len} for {len} tokens"
            );
            return Err(Error::Layout { reason });
        }
        self.positions[at..at + len].copy_from_slice(positions);
        let n = self.tokens.len();
        if let Some(block_positions) = block_positions {
            self.block_positions.resize(n, 0);
            self.block_positions[at..at + len].copy_from_slice(block_positions);
        }
        if *prefix_len > 0 {
            self.prefix_lens.resize(n, 0);
            self.prefix_lens[at..at + len].fill(int(*prefix_len));
        }
        Ok(())
    }

    /// Sets the target at position `t` of `row`; `byte_lengths` are the bytes of each id.
    pub(crate) fn set_target(&mut self, row: usize, t: usize, target: u32, byte_lengths: &[u32]) {
        self.targets[row * self.seq_len + t] = id(target);
        self.target_bytes += u64::from(byte_lengths[target as usize]);
        self.n_targets += 1;
    }

    /// Sets the class of the token at position `t` of `row`.
    pub(crate) fn set_class(&mut self, row: usize, t: usize, class: i32) {
        self.targets[row * self.seq_len + t] = class;
        self.n_targets += 1;
    }

    /// Adds a labelled sequence, a group of its own.
    pub(crate) fn label(&mut self, row: usize, (start, end): (usize, usize), labels: Vec<i32>) {
        let group = self.sequences.last().map_or(0, |last| last.group + 1);
        self.sequences.push(Sequence { row, start, end, group, labels });
        self.n_targets += 1;
    }
}

pub(crate) fn id(token: u32) -> i32 {
    i32::try_from(token).expect("token ids are below the vocabulary size, which fits an i32")
}

pub(crate) fn int(index: usize) -> i32 {
    i32::try_from(index).expect("loaders refuse batches of more than i32::MAX positions")
}
