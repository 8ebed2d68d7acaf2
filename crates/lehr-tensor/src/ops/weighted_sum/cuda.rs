//! The sum on a GPU. Learned factors are read there.

use super::Part;
use crate::cuda::{Extent, Source, args, source};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("weighted_sum", "kernel.cu");

/// `y = Σ cᵢ xᵢ`.
pub(super) fn forward(parts: &[Part<'_>], y: &mut Tensor) -> Result<()> {
    let (cuda, n) = (y.cuda()?, y.shape().n_elements());
    let x = |i: usize| parts.get(i).map(|part| part.x);
    let weight = |i: usize| parts.get(i).and_then(|part| part.weight);
    let factor = |i: usize| parts.get(i).map_or(0.0, |part| part.factor);
    let args = args![
        x(0),
        x(1),
        x(2),
        x(3),
        weight(0),
        weight(1),
        weight(2),
        weight(3),
        factor(0),
        factor(1),
        factor(2),
        factor(3),
        &*y,
        n as i64,
    ];
    let extent = Extent::elementwise(cuda, n);
    cuda.launch(&KERNELS, y.dtype(), "weighted_sum_forward", extent, args)
}

/// `dx (+)= factor · weight · dy`.
pub(super) fn backward_term(
    dy: &Tensor,
    weight: Option<&Tensor>,
    factor: f32,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, n) = (dy.cuda()?, dy.shape().n_elements());
    let args = args![dy, weight, factor, &*dx, n as i64, accumulate];
    let extent = Extent::elementwise(cuda, n);
    cuda.launch(&KERNELS, dy.dtype(), "weighted_sum_backward", extent, args)
}

/// `dweight (+)= factor · Σ dy x`. The grid depends on the number of elements alone, and so do the
/// bits.
pub(super) fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    factor: f32,
    dweight: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, n) = (dy.cuda()?, dy.shape().n_elements());
    let blocks = n.div_ceil(8192).clamp(1, 1024);
    // Doubles, in room for pairs of floats.
    let partials = dy.like_f32([blocks, 2])?;
    let args = args![dy, x, &partials, n as i64];
    cuda.launch(&KERNELS, dy.dtype(), "weighted_sum_dot", Extent::line(blocks, 256), args)?;
    finish(dy, &partials, factor, dweight, accumulate)
}

/// `out (+)= factor · Σ partials`, for the sums of blocks in f64, `[blocks, 2]` as f32.
pub(crate) fn finish(
    beside: &Tensor,
    partials: &Tensor,
    factor: f32,
    out: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let blocks = partials.shape()[0] as i32;
    let args = args![partials, blocks, factor, &*out, accumulate];
    let extent = Extent::line(1, 256);
    beside.cuda()?.launch(&KERNELS, beside.dtype(), "weighted_sum_finish", extent, args)
}
