//! Products in f32: panels of rows of weights are dequantised and multiplied by the engine's matrix
//! product. Exact up to the rounding of the weights themselves.

use std::ops::Range;

use lehr_kernels::buffer::CpuBuffer;

use crate::gemm::{Matrix, gemm};
use crate::quant::QMatrix;
use crate::{DType, Result};

/// Numbers in a panel: 4 MiB, so that it is still in a cache when it is multiplied.
const PANEL: usize = 1 << 20;

/// Calls `body` with ranges of rows and their numbers.
fn panels(w: &QMatrix, mut body: impl FnMut(Range<usize>, &[f32]) -> Result<()>) -> Result<()> {
    let (rows, cols) = (w.rows(), w.cols());
    let step = (PANEL / cols / 64 * 64).max(64).min(rows);
    let mut panel = CpuBuffer::uninit(DType::F32, step * cols)?;
    for start in (0..rows).step_by(step) {
        let range = start..rows.min(start + step);
        let panel = &mut panel.as_mut_slice::<f32>()[..range.len() * cols];
        w.dequantize_rows(range.clone(), panel);
        body(range, panel)?;
    }
    Ok(())
}

/// `y = x Wᵀ + bias`.
pub(super) fn multiply(w: &QMatrix, x: &[f32], bias: Option<&[f32]>, y: &mut [f32]) -> Result<()> {
    let (rows, cols) = (w.rows(), w.cols());
    let n_x = x.len() / cols;
    panels(w, |range, panel| {
        let bias = bias.map(|b| &b[range.clone()]);
        let size = (n_x, range.len(), cols);
        let (x, panel) = (Matrix::rows(x, cols), Matrix::transposed(panel, cols));
        gemm(size, x, panel, &mut y[range.start..], rows, false, bias)
    })
}

/// `dx (+)= dy W`.
pub(super) fn backward(w: &QMatrix, dy: &[f32], dx: &mut [f32], accumulate: bool) -> Result<()> {
    let (rows, cols) = (w.rows(), w.cols());
    let n_x = dx.len() / cols;
    panels(w, |range, panel| {
        let add = accumulate || range.start > 0;
        let (dy, panel) = (Matrix::rows(&dy[range.start..], rows), Matrix::rows(panel, cols));
        gemm((n_x, cols, range.len()), dy, panel, dx, cols, add, None)
    })
}
