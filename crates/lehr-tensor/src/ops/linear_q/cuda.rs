//! Products with stored weights on a GPU. Few rows are multiplied directly with the codes; for many
//! rows the codes are decoded first.

use std::sync::Arc;

use crate::cuda::blas::{Matmul, Operand};
use crate::cuda::{Extent, Source, args, int, source};
use crate::ops::linear::cuda as linear;
use crate::quant::{MatrixFormat, OnGpu, QMatrix, Scaling, WeightFormat};
use crate::{DType, Result, Tensor};

pub(crate) static DEQUANTIZE: Source = source!("linear_q-dequantize", "dequantize.cu");
pub(crate) static PRODUCT_OWN: Source = source!("linear_q-product-own", "product_own.cu");
pub(crate) static PRODUCT_BLOCKS: Source = source!("linear_q-product-blocks", "product_blocks.cu");
pub(crate) static PRODUCT_K: Source = source!("linear_q-product-k", "product_k.cu");
const OP: &str = "linear_q";

/// Returns the number of a format in the kernels, and the numbers per scale for formats with
/// separate scales.
fn code(w: &QMatrix) -> Result<(i32, i32)> {
    let group = |scaling| match scaling {
        Scaling::Row => int(OP, w.cols()),
        Scaling::Group(n) => int(OP, n),
    };
    Ok(match w.format() {
        MatrixFormat::Gguf(format) => (format.ggml_id() as i32, 0),
        MatrixFormat::Int8(scaling) => (100, group(scaling)?),
        MatrixFormat::Int4(scaling) => (101, group(scaling)?),
        MatrixFormat::Nf4 => (102, 64),
    })
}

/// Returns the copy of `w` on the device of `x`, and creates it if necessary.
fn copy_beside(w: &QMatrix, x: &Tensor) -> Result<Arc<OnGpu>> {
    if let Some(copy) = w.on_gpu().filter(|copy| copy.device == x.device()) {
        return Ok(copy);
    }
    w.to_device(x.device(), x.dtype())?;
    // The copy was just created.
    w.on_gpu().ok_or(crate::Error::NoKernel { op: OP, device: x.device() })
}

/// Rows of `n` columns for the kernels that write numbers: blocks of 8 rows by 256 columns.
fn extent(rows: usize, cols: usize) -> Extent {
    let mut extent = Extent::line(cols.div_ceil(256), 0);
    extent.grid[1] = rows.div_ceil(8).min(65_535) as u32;
    extent.block = [32, 8, 1];
    extent
}

/// Returns [`dequantized`] of the copy of `w` on the device of `x`.
pub(crate) fn numbers(w: &QMatrix, x: &Tensor) -> Result<(Operand, Option<Tensor>)> {
    let copy = copy_beside(w, x)?;
    dequantized(w, &copy, x)
}

/// Decodes the matrix to the type of `x`; codes that already are such numbers are used directly.
fn dequantized(w: &QMatrix, copy: &OnGpu, x: &Tensor) -> Result<(Operand, Option<Tensor>)> {
    let stored = match w.format() {
        MatrixFormat::Gguf(WeightFormat::F32) => Some(DType::F32),
        MatrixFormat::Gguf(WeightFormat::BF16) => Some(DType::BF16),
        MatrixFormat::Gguf(WeightFormat::F16) => Some(DType::F16),
        _ => None,
    };
    if stored == Some(x.dtype()) {
        return Ok((Operand::rows(copy.codes.device_ptr(), x.dtype(), w.cols()), None));
    }
    let out = x.like([w.rows(), w.cols()])?;
    let (format, group) = code(w)?;
    let args = args![
        &copy.codes,
        &copy.scales,
        &out,
        int(OP, w.rows())?,
        int(OP, w.cols())?,
        int(OP, w.row_bytes())?,
        format,
        group,
    ];
    x.cuda()?.launch(&DEQUANTIZE, x.dtype(), "dequantize", extent(w.rows(), w.cols()), args)?;
    Ok((linear::rows(&out, w.cols()), Some(out)))
}

/// The kernel that multiplies a few rows by a weight in one format, with the parts of its shared
/// memory, as in the comment of `product.cuh`.
struct ProductKernel {
    source: &'static Source,
    name: &'static str,
    /// Columns that a warp has in shared memory at once.
    segment: usize,
    /// Bytes of a row of the weight in shared memory.
    stride: usize,
    /// Bytes between rows of `x`.
    pad: usize,
    /// Bytes of scales.
    scales: usize,
    /// Bytes of a table of levels, once per block.
    table: usize,
}

fn kernel_for(format: MatrixFormat) -> ProductKernel {
    use WeightFormat::{
        BF16, F16, F32, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
    };
    /// Bytes of the levels of four-bit tables, one copy for each bank of shared memory.
    const TABLE: usize = 32_768;
    let of = |source| {
        move |name, segment, stride, pad| ProductKernel {
            source,
            name,
            segment,
            stride,
            pad,
            scales: 0,
            table: 0,
        }
    };
    let (own, blocks, k) = (of(&PRODUCT_OWN), of(&PRODUCT_BLOCKS), of(&PRODUCT_K));
    match format {
        MatrixFormat::Gguf(format) => match format {
            F32 => own("product_f32", 64, 272, 64),
            F16 => own("product_f16", 128, 320, 64),
            BF16 => own("product_bf16", 128, 320, 64),
            Q4_0 => blocks("product_q4_0", 256, 176, 32),
            Q4_1 => blocks("product_q4_1", 256, 176, 32),
            Q5_0 => blocks("product_q5_0", 256, 208, 32),
            Q5_1 => blocks("product_q5_1", 256, 208, 32),
            Q8_0 => blocks("product_q8_0", 256, 304, 32),
            Q2_K => k("product_q2_k", 256, 112, 32),
            Q3_K => k("product_q3_k", 256, 144, 32),
            Q4_K => k("product_q4_k", 256, 144, 32),
            Q5_K => k("product_q5_k", 256, 176, 32),
            Q6_K => k("product_q6_k", 256, 240, 32),
            IQ4_NL => ProductKernel { table: TABLE, ..blocks("product_iq4_nl", 256, 176, 32) },
            IQ4_XS => ProductKernel { table: TABLE, ..k("product_iq4_xs", 256, 176, 32) },
        },
        MatrixFormat::Int8(_) => ProductKernel { scales: 512, ..own("product_int8", 256, 272, 32) },
        MatrixFormat::Int4(_) => ProductKernel { scales: 512, ..own("product_int4", 256, 144, 64) },
        MatrixFormat::Nf4 => {
            ProductKernel { scales: 512, table: TABLE, ..own("product_nf4", 256, 144, 64) }
        }
    }
}

/// Largest number of rows of `x` that are multiplied directly with the codes.
pub(crate) const FEW: usize = 8;

/// A stored matrix `[rows, cols]` on the device: format, codes, and scales (0 if they are among the
/// codes).
pub(crate) struct Stored {
    pub(crate) format: MatrixFormat,
    pub(crate) codes: u64,
    pub(crate) scales: u64,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Numbers per scale, for separate scales.
    pub(crate) group: i32,
}

/// `y = x Wᵀ + bias` for up to [`FEW`] rows: every byte of the weight is read once.
pub(crate) fn multiply_few(
    w: &Stored,
    x: &Tensor,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    /// Rows of the weight per block.
    const ROWS: usize = 16;
    /// Limit of the shared memory of a block.
    const SHARED_MAX: usize = 227 << 10;
    let &Stored { rows, cols, .. } = w;
    let (cuda, n) = (x.cuda()?, x.shape().n_rows());
    let ProductKernel { source, name, segment, stride, pad, scales, table } = kernel_for(w.format);
    let per_warp = 2 * (ROWS * stride + n * (segment * x.dtype().size() + pad) + scales);
    // Short rows need no more warps than they have segments; GPUs with less shared memory take
    // fewer.
    let room = cuda.shared_max().min(SHARED_MAX) - table - 256;
    let warps = cols.div_ceil(segment).clamp(1, 8).min(room / per_warp).max(1);
    let mut extent = Extent::line(rows.div_ceil(ROWS), 32 * warps as u32);
    extent.shared_bytes = (table + 256 + warps * per_warp) as u32;
    let args = args![
        w.codes,
        w.scales,
        x,
        bias,
        &*y,
        int(OP, n)?,
        int(OP, rows)?,
        int(OP, cols)?,
        int(OP, w.format.row_bytes(cols))?,
        w.group,
    ];
    cuda.launch(source, x.dtype(), name, extent, args)
}

/// `y = x Wᵀ + bias`.
pub(super) fn forward(
    w: &QMatrix,
    x: &Tensor,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let (n, rows, cols) = (x.shape().n_rows(), w.rows(), w.cols());
    let copy = copy_beside(w, x)?;
    if (1..=FEW).contains(&n) && rows > 0 && cols > 0 {
        let (_, group) = code(w)?;
        let (codes, scales) = (copy.codes.device_ptr(), copy.scales.device_ptr());
        let stored = Stored { format: w.format(), codes, scales, rows, cols, group };
        return multiply_few(&stored, x, bias, y);
    }
    let (numbers, _held) = dequantized(w, &copy, x)?;
    let b = Operand { transposed: true, ..numbers };
    let bias = bias.map(Tensor::device_ptr);
    Matmul::new((n, rows, cols), linear::rows(x, cols), b, linear::rows(y, rows))
        .bias(bias)
        .run(x.cuda()?)
}

/// `dx (+)= dy W`.
pub(super) fn backward(w: &QMatrix, dy: &Tensor, dx: &mut Tensor, accumulate: bool) -> Result<()> {
    let (n, rows, cols) = (dy.shape().n_rows(), w.rows(), w.cols());
    let copy = copy_beside(w, dy)?;
    let (numbers, _held) = dequantized(w, &copy, dy)?;
    let product =
        Matmul::new((n, cols, rows), linear::rows(dy, rows), numbers, linear::rows(dx, cols));
    product.accumulate(accumulate).run(dy.cuda()?)
}

/// `y[i] = W[ids[i]]`.
pub(super) fn gather(w: &QMatrix, copy: &OnGpu, ids: &Tensor, y: &Tensor) -> Result<()> {
    let n = ids.shape().n_elements();
    let (format, group) = code(w)?;
    let ids = ids.to_device(copy.device)?;
    let args = args![
        &copy.codes,
        &copy.scales,
        &ids,
        y,
        int(OP, n)?,
        int(OP, w.rows())?,
        int(OP, w.cols())?,
        int(OP, w.row_bytes())?,
        format,
        group,
    ];
    y.cuda()?.launch(&DEQUANTIZE, copy.dtype, "dequantize_rows", extent(n, w.cols()), args)
}
