//! Gated rows on a GPU: a warp for each row.

use super::Gate;
use crate::cuda::{Extent, Source, args, int, source};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("add_gated", "kernel.cu");
const OP: &str = "add_gated";
/// Threads of a block, four warps.
const THREADS: u32 = 128;

/// Rows, their width, and the grid of a kernel with a warp for each row. The grid depends on the
/// number of rows alone, and so does the order of the sums.
fn rows(x: &Tensor, gate: Gate<'_>) -> Result<(i32, i32, Extent)> {
    let n = gate.logits.shape().n_elements();
    let extent = Extent::line(n.div_ceil(THREADS as usize / 32).min(1024), THREADS);
    Ok((int(OP, n)?, int(OP, x.shape().last_dim())?, extent))
}

/// `y = x + g other`.
pub(super) fn forward(x: &Tensor, other: &Tensor, gate: Gate<'_>, y: &mut Tensor) -> Result<()> {
    let (n, d, extent) = rows(x, gate)?;
    let args = args![x, other, gate.logits, gate.scale, gate.factor, &*y, n, d];
    x.cuda()?.launch(&KERNELS, x.dtype(), "add_gated_forward", extent, args)
}

/// `dother (+)= g dy`.
pub(super) fn backward_other(
    dy: &Tensor,
    gate: Gate<'_>,
    d_other: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (n, d, extent) = rows(dy, gate)?;
    let args = args![dy, gate.logits, gate.scale, gate.factor, &*d_other, n, d, accumulate];
    dy.cuda()?.launch(&KERNELS, dy.dtype(), "add_gated_backward_other", extent, args)
}

/// Returns `dl = g (1 − σ(l)) Σ dy other` per row and, if wanted, the blocks' sums of
/// `σ(l) Σ dy other` in f64.
pub(super) fn backward_gate(
    dy: &Tensor,
    other: &Tensor,
    gate: Gate<'_>,
    wants_scale: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (n, d, extent) = rows(dy, gate)?;
    let d_logits = gate.logits.like(gate.logits.shape())?;
    // Doubles, in room for pairs of floats. Without rows there is one sum, 0.
    let blocks = (extent.grid[0] as usize).max(1);
    let partials = match wants_scale {
        true => {
            let mut partials = dy.like_f32([blocks, 2])?;
            partials.fill_zero()?;
            Some(partials)
        }
        false => None,
    };
    let args =
        args![dy, other, gate.logits, gate.scale, gate.factor, &d_logits, partials.as_ref(), n, d,];
    dy.cuda()?.launch(&KERNELS, dy.dtype(), "add_gated_backward_gate", extent, args)?;
    Ok((d_logits, partials))
}
