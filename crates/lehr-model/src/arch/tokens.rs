//! What a model is given.

use std::str::FromStr;

use lehr_tensor::ops::attention::Mask;
use lehr_tensor::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// What becomes of the numbers that a recorded forward pass computes and backward reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// They stay in memory.
    #[default]
    Keep,
    /// Of each block only what it begins with stays, `[B, T, D]`; backward computes the others
    /// again: a third more work for a small part of the memory, and the same gradients.
    Recompute,
    /// The same, and what stays waits in the memory of the host if the model is on a GPU.
    Offload,
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "recompute" => Ok(Self::Recompute),
            "offload" => Ok(Self::Offload),
            _ => Err(format!("activations is {text:?}, expected keep, recompute or offload")),
        }
    }
}

/// Token ids `[B, T]` with their positions and, for packed rows, their segments.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Token ids, i32 `[B, T]`.
    pub ids: Tensor,
    /// Position of each token in its sequence, i32 `[B, T]`.
    pub positions: Tensor,
    /// For packed rows: where in the row the token's segment begins, i32 `[B, T]`. No token sees
    /// beyond its segment.
    pub segment_starts: Option<Tensor>,
    /// What becomes of the activations if the pass is recorded.
    pub activations: Activations,
}

impl Tokens {
    /// `batch` sequences of one length, in one slice, the first token at position `start`.
    ///
    /// # Errors
    /// If the number of ids is no multiple of `batch`, or memory runs out.
    pub fn new(ids: &[i32], batch: usize, start: usize) -> Result<Self> {
        let t = ids.len() / batch.max(1);
        let positions: Vec<i32> = (0..ids.len()).map(|i| (start + i % t.max(1)) as i32).collect();
        Ok(Self {
            ids: Tensor::from_ids(ids, [batch, t])?,
            positions: Tensor::from_ids(&positions, [batch, t])?,
            segment_starts: None,
            activations: Activations::Keep,
        })
    }

    /// Packed rows `[B, T]`.
    ///
    /// # Errors
    /// If a slice has another size, or memory runs out.
    pub fn packed(
        ids: &[i32],
        positions: &[i32],
        segment_starts: &[i32],
        (rows, len): (usize, usize),
    ) -> Result<Self> {
        let shape = [rows, len];
        // Rows of one segment each need no mask beyond the causal one.
        let packed = segment_starts.iter().any(|s| *s != 0);
        let segment_starts = match packed {
            true => Some(Tensor::from_ids(segment_starts, shape)?),
            false => None,
        };
        let (ids, positions) = (Tensor::from_ids(ids, shape)?, Tensor::from_ids(positions, shape)?);
        Ok(Self { ids, positions, segment_starts, activations: Activations::Keep })
    }

    /// Number of sequences B.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.ids.shape()[0]
    }

    /// Tokens per sequence T.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.shape()[1]
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.shape().n_elements() == 0
    }

    /// The causal mask of these tokens.
    #[must_use]
    pub(crate) fn causal_mask(&self) -> Mask {
        match &self.segment_starts {
            Some(starts) => Mask::causal().with_segments(starts.clone()),
            None => Mask::causal(),
        }
    }

    /// The mask of an encoder: every token sees its whole segment.
    #[must_use]
    pub(crate) fn bidirectional_mask(&self) -> Mask {
        match &self.segment_starts {
            Some(starts) => Mask::bidirectional().with_segments(starts.clone()),
            None => Mask::bidirectional(),
        }
    }
}
