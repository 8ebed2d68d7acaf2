//! Probabilities on a GPU.

use crate::cuda::{Source, args, int, source};
use crate::ops::rows_cuda;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("softmax", "kernel.cu");
const OP: &str = "softmax";

/// Rows of `d` scores to rows of probabilities.
pub(super) fn forward(d: usize, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let args = args![x, y, int(OP, x.shape().n_rows())?, int(OP, d)?];
    x.cuda()?.launch(&KERNELS, x.dtype(), "softmax_forward", rows_cuda::forward(x, 1024), args)
}

/// `dx (+)= y (dy − Σ dy y)`.
pub(super) fn backward(y: &Tensor, dy: &Tensor, dx: &mut Tensor, accumulate: bool) -> Result<()> {
    let (rows, d) = (int(OP, y.shape().n_rows())?, int(OP, y.shape().last_dim())?);
    let args = args![y, dy, dx, rows, d, accumulate];
    y.cuda()?.launch(&KERNELS, y.dtype(), "softmax_backward", rows_cuda::forward(y, 1024), args)
}
