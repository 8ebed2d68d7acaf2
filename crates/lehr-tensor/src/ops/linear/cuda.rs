//! The three products of a linear map on a GPU, and the column sums of its bias.

use super::Affine;
use super::WeightLayout::{self, InOut, OutIn};
use crate::autograd::Gradients;
use crate::cuda::blas::{Epilogue, Matmul, Operand};
use crate::cuda::{Extent, Source, args, int, source};
use crate::ops::rows_cuda::lanes;
use crate::ops::linear_q::cuda::{FEW, Stored, multiply_few};
use crate::quant::WeightFormat;
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("linear", "kernel.cu");

type Size = (usize, usize, usize);

/// A matrix stored row by row.
pub(crate) fn rows(x: &Tensor, width: usize) -> Operand {
    Operand::rows(x.device_ptr(), x.dtype(), width)
}

/// The transpose of a matrix stored row by row.
pub(crate) fn transposed(x: &Tensor, width: usize) -> Operand {
    Operand::transposed(x.device_ptr(), x.dtype(), width)
}

/// `y = x Wᵀ + bias`.
pub(crate) fn forward(
    (n, n_out, n_in): Size,
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    if let Some(format) = few(n, x.dtype()).filter(|_| layout == OutIn && n_out > 0 && n_in > 0) {
        let (codes, rows, cols) = (weight.device_ptr(), n_out, n_in);
        let stored = Stored { format: format.into(), codes, scales: 0, rows, cols, group: 0 };
        return multiply_few(&stored, x, bias, y);
    }
    let bias = bias.map(Tensor::device_ptr);
    forward_product((n, n_out, n_in), x, weight, layout, y).bias(bias).run(x.cuda()?)
}

fn forward_product((n, n_out, n_in): Size, x: &Tensor, weight: &Tensor, layout: WeightLayout, y: &Tensor) -> Matmul {
    let b = match layout {
        OutIn => transposed(weight, n_in),
        InOut => rows(weight, n_out),
    };
    Matmul::new((n, n_out, n_in), rows(x, n_in), b, rows(y, n_out))
}

/// `y = x Wᵀ + bias` and `h = gelu(y)` (by tanh), written by one product; false if there is none, and then nothing was started.
///
/// It saves the pass that reads y (2 bytes an element) to write h. h is the GELU of the sum before that is rounded to y.
pub(crate) fn forward_with_gelu(size: Size, x: &Tensor, map: &Affine<'_>, y: &mut Tensor, h: &mut Tensor) -> Result<bool> {
    let (cuda, dtype) = (x.cuda()?, x.dtype());
    if !Epilogue::has_gelu(cuda, dtype, size.1) || few(size.0, dtype).is_some() {
        return Ok(false);
    }
    let (bias, aux) = (map.bias.map(Tensor::device_ptr), y.device_ptr());
    let product = forward_product(size, x, map.weight, map.layout, h);
    product.epilogue(Epilogue::Gelu { bias, aux }).try_run(cuda)
}

/// How the weight is stored, if there are few rows and a kernel of our own reads it nearer to the memory's speed than a product of
/// matrices does.
fn few(n: usize, dtype: DType) -> Option<WeightFormat> {
    match dtype {
        DType::BF16 if (1..=FEW).contains(&n) => Some(WeightFormat::BF16),
        DType::F16 if (1..=FEW).contains(&n) => Some(WeightFormat::F16),
        _ => None,
    }
}

/// `dx (+)= dy W`.
pub(crate) fn backward_input(
    size: Size,
    dy: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    input_product(size, dy, weight, layout, dx).accumulate(accumulate).run(dy.cuda()?)
}

fn input_product((n, n_out, n_in): Size, dy: &Tensor, weight: &Tensor, layout: WeightLayout, dx: &Tensor) -> Matmul {
    let b = match layout {
        OutIn => rows(weight, n_in),
        InOut => transposed(weight, n_out),
    };
    Matmul::new((n, n_in, n_out), rows(dy, n_out), b, rows(dx, n_in))
}

/// `dx = dy W ⊙ gelu'(x)` (by tanh), for the x that the GELU is of; false if there is no such product, and then nothing was started.
pub(crate) fn backward_input_of_gelu(
    size: Size,
    dy: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    x: &Tensor,
    dx: &mut Tensor,
) -> Result<bool> {
    let cuda = dy.cuda()?;
    if !Epilogue::has_gelu(cuda, dy.dtype(), size.2) {
        return Ok(false);
    }
    let slope = Epilogue::GeluSlope { aux: x.device_ptr() };
    input_product(size, dy, weight, layout, dx).epilogue(slope).try_run(cuda)
}

/// `dW (+)= dyᵀ x`, or its transpose, in f32.
pub(crate) fn backward_weight(
    (n, n_out, n_in): Size,
    dy: &Tensor,
    x: &Tensor,
    layout: WeightLayout,
    dw: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let product = match layout {
        OutIn => Matmul::new((n_out, n_in, n), transposed(dy, n_out), rows(x, n_in), rows(dw, n_in)),
        InOut => Matmul::new((n_in, n_out, n), transposed(x, n_in), rows(dy, n_out), rows(dw, n_out)),
    };
    product.accumulate(accumulate).run(dy.cuda()?)
}

/// Gradients of the weight, input `index` of the op, and of the bias, the input after it if any.
pub(crate) fn backward_params(
    size: Size,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    grads: &mut Gradients<'_>,
    index: usize,
) -> Result<()> {
    grads.write_param(index, weight, |dw, accumulate| {
        backward_weight(size, dy, x, layout, dw, accumulate)
    })?;
    if grads.n_inputs() <= index + 1 || !grads.wants(index + 1) {
        return Ok(());
    }
    grads.write_param_shaped(index + 1, [size.1].into(), dy, |db, accumulate| {
        column_sums(size.0, dy, size.1, db, accumulate)
    })
}

/// `out (+)= Σ over rows` of `x [n, w]`, in f32: sums of parts, whose number depends on the shape alone, then their sum.
pub(crate) fn column_sums(n: usize, x: &Tensor, w: usize, out: &mut Tensor, accumulate: bool) -> Result<()> {
    const OP: &str = "column_sums";
    let cuda = x.cuda()?;
    if w == 0 {
        return Ok(());
    }
    let lanes = lanes(x.dtype());
    // Rows that together are whole packs.
    let mut group = 1;
    while !(group * w).is_multiple_of(lanes) {
        group *= 2;
    }
    let (n_packs, n_long) = (group * w / lanes, n / group);
    let (blocks, n_partials) = match n_packs {
        0..=128 => {
            let blocks = n_long.div_ceil(8 * (256 / n_packs)).min(264);
            (blocks, group * blocks)
        }
        _ => {
            let lanes_wanted = 65_536usize.div_ceil(n_packs).min(n_long.div_ceil(16));
            let blocks = (n_packs * lanes_wanted).div_ceil(256);
            (blocks, if blocks == 0 { 0 } else { group * (blocks * 256 / n_packs).max(1) })
        }
    };
    let partials = x.like_f32([n_partials, w])?;
    let (n, w_) = (n as i64, int(OP, w)?);
    cuda.launch(&KERNELS, x.dtype(), "column_sums_partials", Extent::line(blocks, 256), args![x, &partials, n, w_])?;
    let args = args![&partials, int(OP, n_partials)?, x, n, w_, &*out, accumulate];
    cuda.launch(&KERNELS, x.dtype(), "column_sums_finish", Extent::line(w.div_ceil(32), 256), args)
}
