//! The three products of a linear map, and the column sums of its bias.

use lehr_kernels::threads;

use lehr_kernels::bf16::Panels;

use super::WeightLayout::{self, InOut, OutIn};
use super::{Kept, LinearSize, bf16};
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

/// The products of one backward pass, which share dy: in f32, or in bf16 if the weight has panels.
pub(crate) struct Backward<'a> {
    kept: &'a Kept,
    dy: &'a Tensor,
    rounded: Option<bf16::OutputGrad>,
}

/// The input of a map: its values, or the operand of the product that gives dW.
pub(crate) enum Input<'a> {
    Values(&'a [f32]),
    Rounded(Option<&'a Panels>),
}

impl<'a> Backward<'a> {
    /// `wants` says whether the gradients of x and of the weight will be asked for.
    pub(crate) fn new(kept: &'a Kept, dy: &'a Tensor, wants: (bool, bool)) -> Result<Self> {
        let &Kept { ref weight, layout, size, .. } = kept;
        let round = || bf16::OutputGrad::new(dy.data(), size, layout, wants);
        Ok(Self { kept, dy, rounded: weight.has_panels().then(round).transpose()? })
    }

    /// `dx (+)= dy W`.
    pub(crate) fn input(&self, dx: &mut [f32], accumulate: bool) -> Result<()> {
        let &Kept { ref weight, layout, size, .. } = self.kept;
        match &self.rounded {
            Some(dy) => dy.input(bf16::Weight::Param(weight), layout, dx, accumulate),
            None => backward_input(size, self.dy.data(), weight.data(), layout, dx, accumulate),
        }
    }

    /// Gradients of the weight, input `index` of the op, and of the bias, the input after it if
    /// any.
    pub(crate) fn params(
        &self,
        x: Input<'_>,
        grads: &mut Gradients<'_>,
        index: usize,
    ) -> Result<()> {
        let &Kept { ref weight, layout, size, .. } = self.kept;
        grads.write(index, weight.shape(), |dw, accumulate| match (&self.rounded, x) {
            (None, Input::Values(x)) => {
                backward_weight(size, self.dy.data(), x, layout, dw, accumulate)
            }
            (Some(dy), Input::Values(x)) => {
                let x = bf16::pack_for_weight(x, size, layout)?;
                dy.weight(size, &x, layout, dw, accumulate)
            }
            (Some(dy), Input::Rounded(Some(x))) => dy.weight(size, x, layout, dw, accumulate),
            (_, Input::Rounded(_)) => unreachable!("x is kept if the weight wants a gradient"),
        })?;
        if grads.n_inputs() <= index + 1 {
            return Ok(());
        }
        grads.write(index + 1, [size.n_out].into(), |db, accumulate| {
            column_sums(self.dy.data(), db, accumulate);
            Ok(())
        })
    }
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
