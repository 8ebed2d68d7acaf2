//! The loss and its gradients with products in bf16.
//!
//! ```text
//! for each chunk of rows                       the rounded dzᵀ of a chunk: 2 n V bytes
//!   for each few rows of the chunk             their logits: 8 MiB
//!     z = x Wᵀ + bias; loss, z → dz in place
//!     round dz and dzᵀ; dx = dz W
//!   dW += dzᵀ x
//! ```
//!
//! dW is read and written once per chunk, so chunks are long; logits are passed over several times,
//! so there are few at a time.

use lehr_kernels::bf16::{Forms, Panels, Side, pack_rows, product};

use super::{Factors, Head, HeadGrads};
use crate::ops::linear::{LinearSize, WeightLayout::OutIn, bf16, cpu::column_sums};
use crate::{DType, Result, Tensor};

/// Largest number of logits at a time.
const LOGITS_MAX: usize = 1 << 21;
/// Largest number of numbers of the rounded dzᵀ.
const ROUNDED_MAX: usize = 1 << 23;
/// Rows come in blocks of this size.
const BLOCK: usize = 32;

/// Rows whose logits exist at a time: a multiple of 32. It depends on the shape alone.
pub(super) fn chunk_rows(n: usize, n_vocabulary: usize) -> usize {
    let most = (LOGITS_MAX / n_vocabulary.max(1)).max(2 * BLOCK) / BLOCK * BLOCK;
    most.min(n.next_multiple_of(BLOCK)).max(BLOCK)
}

impl Head<'_> {
    /// [`Head::forward_backward`] for a weight in bf16.
    pub(super) fn forward_backward_rounded(
        &self,
        weight: bf16::Weight<'_>,
        losses: &mut [f32],
        factors: &Factors<'_>,
        mut grads: HeadGrads<'_>,
    ) -> Result<()> {
        let (v, d, few) = (self.loss.n_vocabulary, self.width, self.chunk_rows);
        let long = (ROUNDED_MAX / v.max(1)).max(few) / few * few;
        let mut logits = Tensor::uninit([few.min(losses.len()), v], DType::F32)?;
        for (index, losses) in losses.chunks_mut(long).enumerate() {
            let (first, n) = (index * long, losses.len());
            let mut dz_t = match &grads.weight {
                Some(_) => Some(Panels::uninit(Side::Left, v, n)?),
                None => None,
            };
            for (part, losses) in losses.chunks_mut(few).enumerate() {
                let (at, rows) = (part * few, losses.len());
                let range = first + at..first + at + rows;
                let size = LinearSize { rows, n_out: v, n_in: d };
                let logits = &mut logits.data_mut()[..rows * v];
                let x = &self.x[range.start * d..range.end * d];
                let x = bf16::Input::pack(x, size, OutIn, false)?;
                bf16::forward(&x, weight, OutIn, self.bias, logits)?;
                let factors = factors.from(range.start);
                self.loss.turn(logits, &self.labels[range.start..], losses, Some(&factors));
                let mut dz = match grads.dx {
                    Some(_) => Some(Panels::uninit(Side::Left, rows, v)?),
                    None => None,
                };
                pack_rows(
                    logits,
                    v,
                    (rows, v),
                    (0, rows),
                    Forms { left: dz.as_mut(), ..Forms::default() },
                );
                pack_rows(
                    logits,
                    v,
                    (rows, v),
                    (at, n),
                    Forms { left_transposed: dz_t.as_mut(), ..Forms::default() },
                );
                if let (Some(dz), Some(dx)) = (&dz, grads.dx.as_deref_mut()) {
                    let dx = &mut dx[range.start * d..range.end * d];
                    product(dz, &*weight.right_operand(false)?, dx, d, false, None)?;
                }
                if let Some(db) = grads.db.as_deref_mut() {
                    column_sums(logits, db, range.start > 0);
                }
            }
            if let (Some(dz_t), Some(grad)) = (&dz_t, grads.weight.as_mut()) {
                let size = LinearSize { rows: n, n_out: v, n_in: d };
                let x = bf16::pack_for_weight(&self.x[first * d..(first + n) * d], size, OutIn)?;
                product(dz_t, &x, grad.dw, d, grad.accumulate || first > 0, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_whole_blocks_within_the_limit() {
        for (n, v) in [(1, 7), (2048, 16_384), (4097, 50_257), (70, 300_000), (500, 1 << 25)] {
            let rows = chunk_rows(n, v);
            assert!(rows > 0 && rows.is_multiple_of(BLOCK), "{n} {v}: {rows}");
            assert!(rows * v <= LOGITS_MAX || rows <= 2 * BLOCK, "{n} {v}: {rows}");
        }
        assert_eq!(chunk_rows(2048, 16_384), 128);
    }
}
