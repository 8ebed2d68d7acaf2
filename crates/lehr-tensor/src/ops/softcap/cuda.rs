//! The bound on a GPU.

use crate::cuda::{Extent, Source, args, source};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("softcap", "kernel.cu");

/// `y = c tanh(x / c)`.
pub(super) fn forward(cap: f32, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let args = args![x, y, n as i64, cap];
    cuda.launch(&KERNELS, x.dtype(), "softcap_forward", Extent::elementwise(cuda, n), args)
}

/// `dx (+)= dy (1 − (y / c)²)`.
pub(super) fn backward(
    cap: f32,
    y: &Tensor,
    dy: &Tensor,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, n) = (y.cuda()?, y.shape().n_elements());
    let args = args![y, dy, dx, n as i64, cap, accumulate];
    cuda.launch(&KERNELS, y.dtype(), "softcap_backward", Extent::elementwise(cuda, n), args)
}
