//! Activation functions on a GPU.

use super::Activation;
use crate::cuda::{Extent, Source, args, source};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("activation", "kernel.cu");

/// Returns the number of an activation in the kernels.
pub(crate) fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Silu => 2,
        Activation::Relu => 3,
        Activation::Relu2 => 4,
    }
}

/// `y = f(x)`.
pub(crate) fn forward(activation: Activation, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let args = args![x, y, n as i64, kind(activation)];
    cuda.launch(&KERNELS, x.dtype(), "activation_forward", Extent::elementwise(cuda, n), args)
}

/// `dx (+)= dy · f'(x)`.
pub(super) fn backward(
    activation: Activation,
    x: &Tensor,
    dy: &Tensor,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let args = args![x, dy, dx, n as i64, kind(activation), accumulate];
    cuda.launch(&KERNELS, x.dtype(), "activation_backward", Extent::elementwise(cuda, n), args)
}

/// `dx = dh · f'(x)`, and `f(x)` in the place of `dh`.
pub(crate) fn backward_and_value(
    activation: Activation,
    x: &Tensor,
    dh_then_h: &mut Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let args = args![x, dh_then_h, dx, n as i64, kind(activation)];
    cuda.launch(
        &KERNELS,
        x.dtype(),
        "activation_backward_and_value",
        Extent::elementwise(cuda, n),
        args,
    )
}
