//! The loop over the blocks of a model, which all families share.

use std::sync::Arc;

use lehr_tensor::{Recompute, Tensor, is_recording, rehearse};

use super::Activations;
use crate::{Error, KvCache, Result};

/// The blocks of a family. Between two blocks there is a pair: the residual stream `x` and what the
/// next block reads, `h`.
pub(super) trait Stack: Send + Sync + 'static {
    /// What all blocks read besides: tokens, rotations, masks.
    type Context: Clone + Send + Sync + 'static;

    /// Number of blocks.
    fn n_blocks(&self) -> usize;

    /// What block `index` reads of the residual stream: its first norm, but for families whose
    /// residual stream is normed already.
    ///
    /// # Errors
    /// If memory runs out.
    fn read(&self, index: usize, x: &Tensor) -> Result<Tensor>;

    /// Block `index`, up to the pair that the next one begins with.
    ///
    /// # Errors
    /// If the tokens do not fit the cache or memory runs out.
    fn block(
        &self,
        index: usize,
        pair: (&Tensor, &Tensor),
        context: &Self::Context,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Tensor)>;
}

/// Runs all blocks on `x` `[B, T, D]`, the embedded tokens, and gives what the last one made for
/// the head to read.
///
/// # Errors
/// Those of the blocks.
pub(super) fn run<S: Stack>(
    stack: &Arc<S>,
    mut x: Tensor,
    context: &S::Context,
    activations: Activations,
    mut cache: Option<&mut KvCache>,
) -> Result<Tensor> {
    let n_tokens = x.shape()[1];
    let mut h = stack.read(0, &x)?;
    let again = activations != Activations::Keep && cache.is_none() && is_recording();
    for index in 0..stack.n_blocks() {
        (x, h) = match again {
            false => stack.block(index, (&x, &h), context, cache.as_deref_mut())?,
            true => recomputed(stack, index, (&x, &h), context, activations)?,
        };
    }
    if let Some(cache) = cache {
        cache.advance(n_tokens);
    }
    Ok(h)
}

/// A block of which only the residual stream before it is kept until backward.
fn recomputed<S: Stack>(
    stack: &Arc<S>,
    index: usize,
    (x, h): (&Tensor, &Tensor),
    context: &S::Context,
    activations: Activations,
) -> Result<(Tensor, Tensor)> {
    let (pair, trains) = rehearse(|| stack.block(index, (x, h), context, None));
    let (x_next, h_next) = pair?;
    let (reader, blocks, context) = (Arc::clone(stack), Arc::clone(stack), context.clone());
    let recompute = Recompute {
        derive: move |kept: &[Tensor]| Ok(vec![reader.read(index, &kept[0]).map_err(as_engine)?]),
        body: move |pair: &[Tensor]| {
            let outputs = blocks.block(index, (&pair[0], &pair[1]), &context, None);
            outputs.map(|(x, h)| vec![x, h]).map_err(as_engine)
        },
        offload: activations == Activations::Offload,
        trains,
    };
    // If the next block reads the residual stream itself, there is one output: its gradient is one
    // sum.
    if h_next.shares_storage(&x_next) {
        let [x] = recompute.record(&[x], &[h], [x_next])?;
        return Ok((x.clone(), x));
    }
    let [x, h] = recompute.record(&[x], &[h], [x_next, h_next])?;
    Ok((x, h))
}

/// What can go wrong the second time, which is what goes wrong in the engine: memory, or a device.
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
