//! Elementwise functions, transposes and sums on a GPU.

use crate::cuda::{Extent, Source, args, source};
use crate::ops::rows_cuda::lanes;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("thin", "kernel.cu");

/// Functions of two tensors, by the kernel's numbers.
#[derive(Clone, Copy)]
pub(super) enum Binary {
    Add = 0,
    Sub = 1,
    Mul = 2,
    Div = 3,
    /// `−b a`: of a quotient `b` with respect to the divisor, `a = dy / divisor`.
    DivGrad = 4,
    /// `a (1 − b²)`: of `b = tanh`.
    TanhGrad = 5,
    /// `a b (1 − b)`: of `b = sigmoid`.
    SigmoidGrad = 6,
}

/// Functions of one tensor, by the kernel's numbers.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Scale = 0,
    Neg = 1,
    Exp = 2,
    Log = 3,
    Tanh = 4,
    Sigmoid = 5,
}

/// `f(a, b)` for each pair of elements.
pub(super) fn binary(op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = a.like(a.shape())?;
    let (cuda, n) = (a.cuda()?, a.shape().n_elements());
    let args = args![a, b, &y, n as i64, op as i32];
    cuda.launch(&KERNELS, a.dtype(), "binary", Extent::elementwise(cuda, n), args)?;
    Ok(y)
}

/// `f(a)` for each element; only a scale uses the factor.
pub(super) fn unary(op: Unary, a: &Tensor, factor: f32) -> Result<Tensor> {
    let y = a.like(a.shape())?;
    let (cuda, n) = (a.cuda()?, a.shape().n_elements());
    let args = args![a, &y, n as i64, op as i32, factor];
    cuda.launch(&KERNELS, a.dtype(), "unary", Extent::elementwise(cuda, n), args)?;
    Ok(y)
}

/// `[outer, a, middle, b, inner]` as `[outer, b, middle, a, inner]`.
pub(super) fn swapped(
    x: &Tensor,
    [outer, a, middle, b, inner]: [usize; 5],
    y: &mut Tensor,
) -> Result<()> {
    /// Limit of the second and third dimension of a grid.
    const GRID_MAX: usize = 65_535;
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let [outer_, a_, middle_, b_, inner_] = [outer, a, middle, b, inner].map(|n| n as i64);
    if inner != 1 || n == 0 {
        let args = args![x, y, outer_, a_, middle_, b_, inner_];
        return cuda.launch(
            &KERNELS,
            x.dtype(),
            "transpose_rows",
            Extent::elementwise(cuda, n),
            args,
        );
    }
    let edge = 8 * lanes(x.dtype());
    let mut extent = Extent::line(b.div_ceil(edge), 256);
    extent.grid[1] = a.div_ceil(edge).min(GRID_MAX) as u32;
    extent.grid[2] = (outer * middle).min(GRID_MAX) as u32;
    cuda.launch(
        &KERNELS,
        x.dtype(),
        "transpose_tiles",
        extent,
        args![x, y, outer_, a_, middle_, b_],
    )
}

/// `Σ x / divisor` as `[1]`, in the type of `x`. The grid depends on the number of elements alone,
/// and so do the bits.
pub(super) fn sum(x: &Tensor, divisor: f64) -> Result<Tensor> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let blocks = n.div_ceil(8192).clamp(1, 1024);
    // Doubles, in room for pairs of floats.
    let partials = x.like_f32([blocks, 2])?;
    let total = x.like_f32([1])?;
    cuda.launch(
        &KERNELS,
        x.dtype(),
        "sum_partials",
        Extent::line(blocks, 256),
        args![x, &partials, n as i64],
    )?;
    let args = args![&partials, blocks as i32, &total, divisor];
    cuda.launch(&KERNELS, x.dtype(), "sum_finish", Extent::line(1, 256), args)?;
    total.cast(x.dtype())
}

/// A tensor like `like` filled with `value · factor`, for a value that is on the device.
pub(super) fn filled_from(
    like: &Tensor,
    shape: crate::Shape,
    value: &Tensor,
    factor: f32,
) -> Result<Tensor> {
    let (y, value) = (like.like(shape)?, value.to_f32()?);
    let (cuda, n) = (y.cuda()?, shape.n_elements());
    let args = args![&y, n as i64, &value, factor];
    cuda.launch(&KERNELS, y.dtype(), "fill_from", Extent::elementwise(cuda, n), args)?;
    Ok(y)
}
