//! The loop over the blocks of a model, shared by all families.
//!
//! The textbook equations of a pre-norm block are
//!
//! ```text
//! h = x + Attention(norm₁(x))
//! y = h + MLP(norm₂(h))
//! ```
//!
//! Here a block takes `x` together with `norm₁(x)`, and returns `y` together with the next block's
//! `norm₁(y)` (after the last block: the model's last norm). The values are the same. The reason is
//! speed. A sum and the norm of that sum are one operation (`forward_add`), which reads and writes
//! the residual stream once instead of twice. That operation spans two blocks: the sum ends one
//! block, and the norm begins the next. The earlier block computes both.

use std::sync::Arc;

use lehr_tensor::{Recompute, Tensor, checkpointed_forward, is_recording};

use super::{ActivationCheckpointing, Pass, Residual};
use crate::{Error, KvCache, Result};

/// The blocks of a family.
pub(super) trait Stack: Send + Sync + 'static {
    /// Input shared by all blocks: rotations and masks.
    type Context: Clone + Send + Sync + 'static;

    /// Returns the number of blocks.
    fn n_blocks(&self) -> usize;

    /// Computes the input of block `index` from the residual stream `x`: its first norm, or `x`
    /// itself in post-norm families.
    ///
    /// # Errors
    /// If memory runs out.
    fn first_norm(&self, index: usize, x: &Tensor) -> Result<Tensor>;

    /// Sees the residual stream `x` before block `index` reads it, and may keep it for a later
    /// block.
    fn before_block(&self, _index: usize, _x: &Tensor, _context: &mut Self::Context) {}

    /// Runs block `index` up to and including the first norm of the next block.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    fn block(
        &self,
        index: usize,
        residual: &Residual,
        context: &Self::Context,
        cache: Option<&mut KvCache>,
    ) -> Result<Residual>;
}

/// Runs all blocks on `x` `[B, T, D]`, the embedded tokens of `pass`, and returns the input of the
/// head. If there is a cache, it then counts the new tokens.
///
/// # Errors
/// The first error of a block.
pub(super) fn run<S: Stack>(
    stack: &Arc<S>,
    x: Tensor,
    context: &S::Context,
    pass: Pass<'_>,
) -> Result<Tensor> {
    let Pass { tokens, mut cache, checkpointing, .. } = pass;
    let recomputes =
        checkpointing != ActivationCheckpointing::None && cache.is_none() && is_recording();
    let normed = stack.first_norm(0, &x)?;
    let mut residual = Residual { x, normed };
    let mut context = context.clone();
    for index in 0..stack.n_blocks() {
        stack.before_block(index, &residual.x, &mut context);
        residual = match recomputes {
            false => stack.block(index, &residual, &context, cache.as_deref_mut())?,
            true => recomputed(stack, index, &residual, &context, checkpointing)?,
        };
    }
    if let Some(cache) = cache {
        cache.keep_prefix(tokens.longest_prefix());
        cache.advance(tokens.len());
    }
    Ok(residual.normed)
}

/// Runs a block and keeps only its input residual stream until backward. Tensors of the context
/// that want a gradient get it when backward runs the block a second time.
fn recomputed<S: Stack>(
    stack: &Arc<S>,
    index: usize,
    residual: &Residual,
    context: &S::Context,
    checkpointing: ActivationCheckpointing,
) -> Result<Residual> {
    let (next, uses_trained_params) =
        checkpointed_forward(|| stack.block(index, residual, context, None));
    let next = next?;
    let (normed_by, blocks, context) = (Arc::clone(stack), Arc::clone(stack), context.clone());
    let recompute = Recompute {
        derive: move |kept: &[Tensor]| {
            Ok(vec![normed_by.first_norm(index, &kept[0]).map_err(as_engine)?])
        },
        body: move |inputs: &[Tensor]| {
            let residual = Residual { x: inputs[0].clone(), normed: inputs[1].clone() };
            let next = blocks.block(index, &residual, &context, None).map_err(as_engine)?;
            Ok(vec![next.x, next.normed])
        },
        offload: checkpointing == ActivationCheckpointing::Offload,
        uses_trained_params,
    };
    let (kept, derived) = ([&residual.x], [&residual.normed]);
    // If the next block reads the residual stream itself, record one output, so its gradient is one
    // sum.
    if next.normed.shares_storage(&next.x) {
        let [x] = recompute.record(&kept, &derived, [next.x])?;
        return Ok(Residual::already_normed(x));
    }
    let [x, normed] = recompute.record(&kept, &derived, [next.x, next.normed])?;
    Ok(Residual { x, normed })
}

/// Converts an error of the second forward pass to an engine error: memory, or a device.
fn as_engine(error: Error) -> lehr_tensor::Error {
    match error {
        Error::Tensor(error) => error,
        other => lehr_tensor::Error::Argument {
            op: "recompute",
            name: "block",
            value: other.to_string(),
            expected: "what happened in the forward pass",
        },
    }
}
