//! The batch: what every loader gives and every trainer takes.

/// One micro-batch, row-major `[B, T]`, as plain vectors.
///
/// A row holds one or more *segments* (documents, conversations or texts), then padding. No token
/// may attend to a token of another segment. Each padding token is a segment of its own, with no
/// target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows, B.
    pub rows: usize,
    /// Length of a row, T.
    pub len: usize,
    /// Token ids, `[B*T]`.
    pub tokens: Vec<i32>,
    /// The token to be predicted at each position, `[B*T]`; [`Batch::IGNORE`] where there is none.
    pub targets: Vec<i32>,
    /// Position within the segment, `[B*T]`, from 0.
    pub positions: Vec<i32>,
    /// Index within the row at which the token's segment begins, `[B*T]`; attention never looks
    /// before it.
    pub segment_starts: Vec<i32>,
    /// Class of each labelled sequence, `[n]`; empty unless the task is classification.
    pub class_labels: Vec<i32>,
    /// Flat index (row * T + t) of the last token of each labelled sequence, `[n]`.
    pub class_positions: Vec<i32>,
    /// UTF-8 bytes of all tokens in `targets`, the denominator of bits per byte. Special tokens
    /// count 0 bytes.
    pub target_bytes: u64,
    /// Number of labelled positions, or of labelled sequences for classification.
    pub n_targets: usize,
}

impl Batch {
    /// The target of a position without loss.
    pub const IGNORE: i32 = -100;

    /// A batch of padding only.
    pub(crate) fn padding(rows: usize, len: usize, pad: i32) -> Self {
        let within_row = (0..rows).flat_map(|_| 0..len);
        Self {
            rows,
            len,
            tokens: vec![pad; rows * len],
            targets: vec![Self::IGNORE; rows * len],
            positions: vec![0; rows * len],
            segment_starts: within_row.map(int).collect(),
            class_labels: Vec::new(),
            class_positions: Vec::new(),
            target_bytes: 0,
            n_targets: 0,
        }
    }

    /// Writes a token at position `t` of `row`, in the segment that begins at `segment_start`.
    pub(crate) fn put(&mut self, row: usize, t: usize, segment_start: usize, token: u32) {
        let at = row * self.len + t;
        self.tokens[at] = id(token);
        self.positions[at] = int(t - segment_start);
        self.segment_starts[at] = int(segment_start);
    }

    /// Sets the target at position `t` of `row`; `byte_lengths` are the bytes of each id.
    pub(crate) fn aim(&mut self, row: usize, t: usize, target: u32, byte_lengths: &[u32]) {
        self.targets[row * self.len + t] = id(target);
        self.target_bytes += u64::from(byte_lengths[target as usize]);
        self.n_targets += 1;
    }

    /// Labels the sequence whose last token is at position `t` of `row`.
    pub(crate) fn label(&mut self, row: usize, t: usize, class: usize) {
        self.class_labels.push(int(class));
        self.class_positions.push(int(row * self.len + t));
        self.n_targets += 1;
    }
}

pub(crate) fn id(token: u32) -> i32 {
    i32::try_from(token).expect("token ids are below the vocabulary size, which fits an i32")
}

fn int(index: usize) -> i32 {
    i32::try_from(index).expect("loaders refuse batches of more than i32::MAX positions")
}
