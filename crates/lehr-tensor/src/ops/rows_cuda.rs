//! Shared parts of kernels over rows: their grids, and how their gradients are summed.

use crate::autograd::Gradients;
use crate::cuda::{Cuda, Extent, Source, args, int};
use crate::{DType, Result, Tensor};

/// Elements that a thread moves at once.
pub(super) fn lanes(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Threads along a row and rows per block, for rows of `d` elements; a thread holds `per_thread`
/// packs of a row.
fn block(d: usize, dtype: DType, per_thread: usize, most: usize) -> (usize, usize) {
    let threads = d.div_ceil(lanes(dtype)).div_ceil(per_thread);
    match threads {
        0..=32 => {
            let x = threads.next_power_of_two().max(8);
            (x, 256 / x)
        }
        _ => (threads.next_multiple_of(32).min(most), 1),
    }
}

/// Returns the grid of a forward kernel: every row once, in blocks of at most `most` threads.
pub(super) fn forward(x: &Tensor, most: usize) -> Extent {
    /// Packs of a row that a thread holds.
    const PER_THREAD: usize = 4;
    let (columns, rows) = block(x.shape().last_dim(), x.dtype(), PER_THREAD, most);
    let mut extent = Extent::line(x.shape().n_rows().div_ceil(rows), 0);
    extent.block = [columns as u32, rows as u32, 1];
    extent
}

/// Returns the grid of a backward kernel: as many blocks as run at once, each with its own sums
/// over `n_sums` columns of `d`.
pub(super) fn backward(cuda: &Cuda, x: &Tensor, resident_threads: usize, n_sums: usize) -> Extent {
    /// Packs of a row that a thread holds.
    const PER_THREAD: usize = 2;
    /// Limit of the shared memory for sums that are not in registers.
    const SHARED_MAX: usize = 96 << 10;
    let (d, n_rows) = (x.shape().last_dim(), x.shape().n_rows());
    let (columns, rows) = block(d, x.dtype(), PER_THREAD, 512);
    let per_sm = (resident_threads / (columns * rows)).clamp(1, 8);
    let mut extent = Extent::line((cuda.n_sms() as usize * per_sm).min(n_rows.div_ceil(rows)), 0);
    extent.block = [columns as u32, rows as u32, 1];
    let lanes = lanes(x.dtype());
    let in_registers = d.is_multiple_of(lanes) && d <= PER_THREAD * lanes * columns;
    let bytes = rows * d * 4 * n_sums;
    if n_sums > 0 && (rows > 1 || (!in_registers && bytes <= SHARED_MAX)) {
        extent.shared_bytes = bytes as u32;
    }
    extent
}

/// Allocates the sums of each block of a backward kernel.
pub(super) fn partials(x: &Tensor, extent: &Extent) -> Result<Tensor> {
    x.like_f32([extent.grid[0] as usize, x.shape().last_dim()])
}

/// Returns the grid for adding partial sums of `d` columns: blocks of 32 by 32 threads, 32 columns
/// each.
fn sum_partials(d: usize) -> Extent {
    let mut extent = Extent::line(d.div_ceil(32), 0);
    extent.block = [32, 32, 1];
    extent
}

/// Computes the gradient of `x`, input 0. `run` gets the base and the output of its kernel, both
/// `None` if the gradient is not wanted, and returns the sums of its blocks.
pub(super) fn write_input<P>(
    x: &Tensor,
    grads: &mut Gradients<'_>,
    run: impl Fn(Option<u64>, Option<&Tensor>) -> Result<P>,
) -> Result<P> {
    let mut partials = None;
    if grads.wants(0) {
        grads.write_like(0, x, |dx, accumulate| {
            partials = Some(run(accumulate.then(|| dx.device_ptr()), Some(&*dx))?);
            Ok(())
        })?;
    }
    partials.map_or_else(|| run(None, None), Ok)
}

/// Adds `partials` `[blocks, d]`, the sums of a backward kernel's blocks, to the gradient of
/// `param`, input `index`, by the kernel `name` of `source`.
pub(super) fn add_partials(
    (source, name): (&'static Source, &'static str),
    x: &Tensor,
    partials: &Tensor,
    grads: &mut Gradients<'_>,
    (index, param): (usize, &Tensor),
) -> Result<()> {
    let (n_blocks, d) = (int(name, partials.shape()[0])?, int(name, partials.shape()[1])?);
    grads.write_param(index, param, |out, accumulate| {
        let extent = sum_partials(d as usize);
        x.cuda()?.launch(
            source,
            x.dtype(),
            name,
            extent,
            args![partials, out, n_blocks, d, accumulate],
        )
    })
}
