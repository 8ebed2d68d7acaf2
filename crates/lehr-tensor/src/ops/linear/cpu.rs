//! The three products of a linear map, and the column sums of its bias.

use lehr_kernels::threads;

use super::LinearSize;
use super::WeightLayout::{self, InOut, OutIn};
use crate::autograd::Gradients;
use crate::gemm::{Matrix, gemm};
use crate::{Result, Tensor};

/// `y = x Wᵀ + bias`.
pub(crate) fn forward(
    LinearSize { rows: n, n_out, n_in }: LinearSize,
    x: &[f32],
    weight: &[f32],
    layout: WeightLayout,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let weight = match layout {
        OutIn => Matrix::transposed(weight, n_in),
        InOut => Matrix::rows(weight, n_out),
    };
    gemm((n, n_out, n_in), Matrix::rows(x, n_in), weight, y, n_out, false, bias)
}

/// `dx (+)= dy W`.
pub(crate) fn backward_input(
    LinearSize { rows: n, n_out, n_in }: LinearSize,
    dy: &[f32],
    weight: &[f32],
    layout: WeightLayout,
    dx: &mut [f32],
    accumulate: bool,
) -> Result<()> {
    let weight = match layout {
        OutIn => Matrix::rows(weight, n_in),
        InOut => Matrix::transposed(weight, n_out),
    };
    gemm((n, n_in, n_out), Matrix::rows(dy, n_out), weight, dx, n_in, accumulate, None)
}

/// `dW (+)= dyᵀ x`, or its transpose.
pub(crate) fn backward_weight(
    LinearSize { rows: n, n_out, n_in }: LinearSize,
    dy: &[f32],
    x: &[f32],
    layout: WeightLayout,
    dw: &mut [f32],
    accumulate: bool,
) -> Result<()> {
    match layout {
        OutIn => {
            let (a, b) = (Matrix::transposed(dy, n_out), Matrix::rows(x, n_in));
            gemm((n_out, n_in, n), a, b, dw, n_in, accumulate, None)
        }
        InOut => {
            let (a, b) = (Matrix::transposed(x, n_in), Matrix::rows(dy, n_out));
            gemm((n_in, n_out, n), a, b, dw, n_out, accumulate, None)
        }
    }
}

/// Gradients of the weight, input `index` of the op, and of the bias, the input after it if any.
pub(crate) fn backward_params(
    size: LinearSize,
    dy: &Tensor,
    x: &[f32],
    weight: &Tensor,
    layout: WeightLayout,
    grads: &mut Gradients<'_>,
    index: usize,
) -> Result<()> {
    grads.write(index, weight.shape(), |dw, accumulate| {
        backward_weight(size, dy.data(), x, layout, dw, accumulate)
    })?;
    if grads.n_inputs() <= index + 1 {
        return Ok(());
    }
    grads.write(index + 1, [size.n_out].into(), |db, accumulate| {
        column_sums(dy.data(), db, accumulate);
        Ok(())
    })
}

/// `out (+)= Σ over rows`: tasks own columns, so the order of additions is that of the rows.
pub(crate) fn column_sums(x: &[f32], out: &mut [f32], accumulate: bool) {
    /// Columns per task, four cache lines.
    const COLUMNS: usize = 64;
    let width = out.len();
    threads::run_chunks(out, COLUMNS, |index, out| {
        let start = index * COLUMNS;
        if !accumulate {
            out.fill(0.0);
        }
        for row in x.chunks_exact(width) {
            for (sum, value) in out.iter_mut().zip(&row[start..]) {
                *sum += value;
            }
        }
    });
}
