//! Gated activations on a GPU.

use crate::cuda::{Extent, Source, args, source};
use crate::ops::activation::Activation;
use crate::ops::activation::cuda::kind;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("gated", "kernel.cu");

/// `y = f(gate) · up`.
pub(crate) fn forward(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let (cuda, n) = (gate.cuda()?, gate.shape().n_elements());
    let args = args![gate, up, y, n as i64, kind(activation)];
    cuda.launch(&KERNELS, gate.dtype(), "gated_forward", Extent::elementwise(cuda, n), args)
}

/// `dgate = dy · up · f'(gate)` and `dup = dy · f(gate)`.
pub(super) fn backward(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    dgate: &mut Tensor,
    dup: &mut Tensor,
) -> Result<()> {
    let (cuda, n) = (gate.cuda()?, gate.shape().n_elements());
    let args = args![gate, up, dy, dgate, dup, n as i64, kind(activation)];
    cuda.launch(&KERNELS, gate.dtype(), "gated_backward", Extent::elementwise(cuda, n), args)
}

/// The same, and `f(gate) · up` in the place of `dh`.
pub(crate) fn backward_and_value(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    dh_then_h: &mut Tensor,
    dgate: &mut Tensor,
    dup: &mut Tensor,
) -> Result<()> {
    let (cuda, n) = (gate.cuda()?, gate.shape().n_elements());
    let args = args![gate, up, dh_then_h, dgate, dup, n as i64, kind(activation)];
    cuda.launch(
        &KERNELS,
        gate.dtype(),
        "gated_backward_and_value",
        Extent::elementwise(cuda, n),
        args,
    )
}
