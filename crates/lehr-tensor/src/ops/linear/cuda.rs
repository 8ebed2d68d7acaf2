//! A linear map on a GPU, and the column sums of its bias; backward is [`super::backward`].

use super::WeightLayout::{self, InOut, OutIn};
use super::fp8::{self, Copies, Fp8, Pass};
use super::{Affine, LinearSize};
use crate::autograd::is_training;
use crate::cuda::blas::{Element, Epilogue, Matmul, Operand};
use crate::cuda::{Extent, Source, args, int, source};
use crate::ops::linear_q::cuda::{FEW, Stored, multiply_few};
use crate::ops::rows_cuda::lanes;
use crate::quant::WeightFormat;
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("linear", "kernel.cu");

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
    size: LinearSize,
    x: &Tensor,
    map: &Affine<'_>,
    y: &mut Tensor,
) -> Result<()> {
    let &Affine { weight, layout, bias, fp8 } = map;
    let LinearSize { rows: n, n_out, n_in } = size;
    if let Some(format) = few(n, x.dtype()).filter(|_| layout == OutIn && n_out > 0 && n_in > 0) {
        let (codes, rows, cols) = (weight.device_ptr(), n_out, n_in);
        let stored = Stored { format: format.into(), codes, scales: 0, rows, cols, group: 0 };
        return multiply_few(&stored, x, bias, y);
    }
    let cuda = x.cuda()?;
    if fp8 && is_training() && fp8::fits(cuda, x.dtype(), size) {
        let kind = (Pass::Forward, size, false);
        if fp8::run_unless_refused(kind, || forward_fp8(size, x, map, y))? {
            return Ok(());
        }
    }
    forward_product(size, x, weight, layout, y).bias(bias.map(Tensor::device_ptr)).run(cuda)
}

/// Computes `y = x Wᵀ + bias` in fp8. Returns false if there is no such product.
fn forward_fp8(
    LinearSize { rows: n, n_out, n_in }: LinearSize,
    x: &Tensor,
    map: &Affine<'_>,
    y: &mut Tensor,
) -> Result<bool> {
    let (_w, w) = Fp8::of_weight(map.weight, map.layout, (n_out, n_in), OutIn)?;
    let x8 = Fp8::new(x, (n, n_in), Element::E4M3, Copies::Rows)?;
    let product = Matmul::new((n, n_out, n_in), x8.rows(), w, rows(y, n_out));
    product.bias(map.bias.map(Tensor::device_ptr)).try_run(x.cuda()?)
}

/// Returns the weight for our own kernel if there are few rows: it reads the weight closer to the
/// speed of memory than a product of matrices does.
fn few(n: usize, dtype: DType) -> Option<WeightFormat> {
    match dtype {
        DType::BF16 if (1..=FEW).contains(&n) => Some(WeightFormat::BF16),
        DType::F16 if (1..=FEW).contains(&n) => Some(WeightFormat::F16),
        _ => None,
    }
}

fn forward_product(
    LinearSize { rows: n, n_out, n_in }: LinearSize,
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    y: &Tensor,
) -> Matmul {
    let b = match layout {
        OutIn => transposed(weight, n_in),
        InOut => rows(weight, n_out),
    };
    Matmul::new((n, n_out, n_in), rows(x, n_in), b, rows(y, n_out))
}

/// Computes `y = x Wᵀ + bias` and `h = gelu(y)` (by tanh) by one product. Returns false, and starts
/// nothing, if there is no such product.
///
/// This saves the pass that reads y (2 bytes per element) to write h. h is the GELU of the sum
/// before it is rounded to y.
pub(crate) fn forward_with_gelu(
    size: LinearSize,
    x: &Tensor,
    map: &Affine<'_>,
    y: &mut Tensor,
    h: &mut Tensor,
) -> Result<bool> {
    let (cuda, dtype) = (x.cuda()?, x.dtype());
    let is_fp8 = map.fp8 && fp8::fits(cuda, dtype, size);
    if is_fp8 || !Epilogue::has_gelu(cuda, dtype, size.n_out) || few(size.rows, dtype).is_some() {
        return Ok(false);
    }
    let (bias, aux) = (map.bias.map(Tensor::device_ptr), y.device_ptr());
    let product = forward_product(size, x, map.weight, map.layout, h);
    product.epilogue(Epilogue::Gelu { bias, aux }).try_run(cuda)
}

/// `out (+)= Σ over rows` of `x [n, w]`, in f32: sums of parts, whose number depends on the shape
/// alone, then their sum.
pub(crate) fn column_sums(
    n: usize,
    x: &Tensor,
    w: usize,
    out: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
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
    cuda.launch(
        &KERNELS,
        x.dtype(),
        "column_sums_partials",
        Extent::line(blocks, 256),
        args![x, &partials, n, w_],
    )?;
    let args = args![&partials, int(OP, n_partials)?, x, n, w_, &*out, accumulate];
    cuda.launch(&KERNELS, x.dtype(), "column_sums_finish", Extent::line(w.div_ceil(32), 256), args)
}
