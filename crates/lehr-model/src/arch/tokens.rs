//! The input of a model: token ids, positions and masks.

use lehr_tensor::Tensor;
use lehr_tensor::ops::attention::Mask;

use super::Layout;
use crate::{Error, Result};

/// Token ids `[B, T]` with positions and masks. A forward pass derives nothing from the ids.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Token ids, i32 `[B, T]`.
    pub ids: Tensor,
    /// Position of each token in its text, i32 `[B, T]`.
    pub positions: Tensor,
    /// Positions in the second stream, i32 `[B, T]`, for models with two (ChatGLM-6B).
    pub block_positions: Option<Tensor>,
    /// For packed rows: the start of each token's segment in its row, i32 `[B, T]`. No token
    /// attends beyond its segment.
    pub segment_starts: Option<Tensor>,
    /// Length of the bidirectional prefix of each token's segment (GLM), i32 `[B, T]`. Every token
    /// of the segment attends to it. `None` if no segment has one.
    pub prefix_lens: Option<Tensor>,
}

/// Packed rows as plain slices, each `[batch_size · seq_len]`, row after row.
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a> {
    /// Token ids.
    pub ids: &'a [i32],
    /// Position of each token in its text.
    pub positions: &'a [i32],
    /// Positions in the second stream, for models with two.
    pub block_positions: Option<&'a [i32]>,
    /// Start of each token's segment in its row.
    pub segment_starts: &'a [i32],
    /// Length of the bidirectional prefix of each token's segment.
    pub prefix_lens: Option<&'a [i32]>,
    /// Number of rows B.
    pub batch_size: usize,
    /// Tokens per row T.
    pub seq_len: usize,
}

/// A text in a packed row.
#[derive(Clone, Copy, Debug)]
pub struct PackedText<'a> {
    /// Token ids.
    pub ids: &'a [i32],
    /// Positions and bidirectional prefix.
    pub layout: &'a Layout,
    /// Index of the row.
    pub row: usize,
    /// Start in the row.
    pub start: usize,
}

impl Tokens {
    /// Takes `batch` causal sequences of equal length from one slice. The first token of each
    /// stands at position `start`.
    ///
    /// # Errors
    /// If the number of ids is not a multiple of `batch`, or memory runs out.
    pub fn new(ids: &[i32], batch: usize, start: usize) -> Result<Self> {
        let t = ids.len() / batch.max(1);
        let positions: Vec<i32> = (0..ids.len()).map(|i| (start + i % t.max(1)) as i32).collect();
        Self::causal(Tensor::from_ids(ids, [batch, t])?, Tensor::from_ids(&positions, [batch, t])?)
    }

    /// Takes ids and positions, i32 `[B, T]` each. Each row is one causal text.
    ///
    /// # Errors
    /// If the shapes differ.
    pub(crate) fn causal(ids: Tensor, positions: Tensor) -> Result<Self> {
        if ids.shape() != positions.shape() {
            let found = format!("positions {} for ids {}", positions.shape(), ids.shape());
            return Err(Error::layout(found, "a position for each id"));
        }
        let (segment_starts, prefix_lens) = (None, None);
        Ok(Self { ids, positions, block_positions: None, segment_starts, prefix_lens })
    }

    /// Takes tokens `start .. start + T` of several texts, one row per layout. Tokens after the end
    /// of a layout are generated ones. A `start` of 0 begins the texts; a larger one continues
    /// those in a cache.
    ///
    /// # Errors
    /// If the number of ids is not a multiple of the number of texts, the layouts belong to
    /// different models, or memory runs out.
    pub fn of_texts(ids: &[i32], layouts: &[&Layout], start: usize) -> Result<Self> {
        let t = ids.len() / layouts.len().max(1);
        let places = layouts.iter().flat_map(|layout| (start..start + t).map(|i| layout.at(i)));
        let (mut positions, mut block_positions) = (Vec::new(), Vec::new());
        for place in places {
            positions.push(place.position);
            block_positions.extend(place.block_position);
        }
        let lens = layouts.iter().map(|layout| layout.prefix_len as i32);
        let prefix_lens: Vec<i32> = lens.flat_map(|len| vec![len; t]).collect();
        Self::packed(&TokenRows {
            ids,
            positions: &positions,
            block_positions: (!block_positions.is_empty()).then_some(&block_positions),
            segment_starts: &vec![0; ids.len()],
            prefix_lens: Some(&prefix_lens),
            batch_size: layouts.len(),
            seq_len: t,
        })
    }

    /// Packs texts into rows of `seq_len` tokens. Free positions are padding: id 0 at position 0,
    /// each in a segment of its own.
    ///
    /// # Errors
    /// If a text and its layout differ in length, a text does not fit its row, the layouts belong
    /// to different models, or memory runs out.
    pub fn pack(texts: &[PackedText<'_>], batch_size: usize, seq_len: usize) -> Result<Self> {
        let n = batch_size * seq_len;
        let (mut ids, mut positions, mut prefix_lens) = (vec![0; n], vec![0; n], vec![0; n]);
        let mut segment_starts: Vec<i32> = (0..n).map(|i| (i % seq_len) as i32).collect();
        let two_streams = texts.iter().any(|text| text.layout.block_positions.is_some());
        let mut block_positions = if two_streams { vec![0; n] } else { Vec::new() };
        for text in texts {
            let (len, layout) = (text.ids.len(), text.layout);
            let fits = text.row < batch_size && text.start + len <= seq_len;
            if !fits || layout.len() != len {
                let found = format!("{len} tokens at {} of row {}", text.start, text.row);
                let expected = format!(
                    "{}, as its layout has, within {batch_size} rows of {seq_len}",
                    layout.len()
                );
                return Err(Error::layout(found, expected));
            }
            let at = text.row * seq_len + text.start;
            let at = at..at + len;
            ids[at.clone()].copy_from_slice(text.ids);
            positions[at.clone()].copy_from_slice(&layout.positions);
            segment_starts[at.clone()].fill(text.start as i32);
            prefix_lens[at.clone()].fill(layout.prefix_len as i32);
            match &layout.block_positions {
                Some(stream) => block_positions[at].copy_from_slice(stream),
                None if two_streams => return Err(different_models()),
                None => {}
            }
        }
        Self::packed(&TokenRows {
            ids: &ids,
            positions: &positions,
            block_positions: two_streams.then_some(&block_positions),
            segment_starts: &segment_starts,
            prefix_lens: Some(&prefix_lens),
            batch_size,
            seq_len,
        })
    }

    /// Takes packed rows from a loader.
    ///
    /// # Errors
    /// If a slice has another size, or memory runs out.
    pub fn packed(rows: &TokenRows<'_>) -> Result<Self> {
        let shape = [rows.batch_size, rows.seq_len];
        if rows.block_positions.is_some_and(|stream| stream.len() != rows.ids.len()) {
            return Err(different_models());
        }
        let tensor = |numbers: &[i32]| Tensor::from_ids(numbers, shape);
        // If all lengths are 0, the causal mask suffices.
        let unless_zero = |numbers: &[i32]| match numbers.iter().any(|n| *n != 0) {
            true => tensor(numbers).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            ids: tensor(rows.ids)?,
            positions: tensor(rows.positions)?,
            block_positions: rows.block_positions.map(tensor).transpose()?,
            segment_starts: unless_zero(rows.segment_starts)?,
            prefix_lens: unless_zero(rows.prefix_lens.unwrap_or_default())?,
        })
    }

    /// Returns the number of sequences B.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.ids.shape()[0]
    }

    /// Returns the tokens per sequence T.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.shape()[1]
    }

    /// Returns whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.shape().n_elements() == 0
    }

    /// Returns the length of the longest bidirectional prefix, 0 if there is none.
    #[must_use]
    pub fn longest_prefix(&self) -> usize {
        let longest = self.prefix_lens.as_ref().and_then(|lens| lens.ids().iter().max().copied());
        longest.and_then(|len| usize::try_from(len).ok()).unwrap_or(0)
    }

    /// Returns the mask of a decoder: a token attends to earlier tokens and to the bidirectional
    /// prefix of its segment.
    #[must_use]
    pub fn causal_mask(&self) -> Mask {
        let mask = self.within_segments(Mask::causal());
        match &self.prefix_lens {
            Some(lens) => mask.with_prefix(lens.clone()),
            None => mask,
        }
    }

    /// Returns the mask of an encoder: a token attends to its whole segment.
    #[must_use]
    pub fn bidirectional_mask(&self) -> Mask {
        self.within_segments(Mask::bidirectional())
    }

    fn within_segments(&self, mask: Mask) -> Mask {
        match &self.segment_starts {
            Some(starts) => mask.with_segments(starts.clone()),
            None => mask,
        }
    }
}

/// Returns the error for texts with and without a second stream of positions in one batch.
fn different_models() -> Error {
    let found = "a second stream of positions for some of the texts only";
    Error::layout(found, "layouts that one model made")
}
