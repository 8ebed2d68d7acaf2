//! Previous rows on a GPU. The starts of texts are uploaded.

use super::{AtStart, PreviousRows};
use crate::cuda::{Extent, Source, args, int, source};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("previous_rows", "kernel.cu");
const OP: &str = "previous_rows";

/// `y`, from `x` and the rows before it.
pub(super) fn forward(
    x: &Tensor,
    before: Option<&Tensor>,
    op: &PreviousRows,
    y: &mut Tensor,
) -> Result<()> {
    let (cuda, shape) = (x.cuda()?, x.shape());
    let n = shape.n_elements();
    let starts = op.starts.to_device(x.device())?;
    let width: usize = shape[2..].iter().product();
    let args = args![
        x,
        before,
        &starts,
        &*y,
        n as i64,
        int(OP, shape[1])?,
        int(OP, width)?,
        int(OP, shape.last_dim())?,
        int(OP, op.channels.start)?,
        int(OP, op.channels.end)?,
        op.at_start == AtStart::Own,
    ];
    let extent = Extent::elementwise(cuda, n);
    cuda.launch(&KERNELS, x.dtype(), "previous_rows_forward", extent, args)
}

/// `dx (+)=` what each token passed to itself and to the next one.
pub(super) fn backward(
    dy: &Tensor,
    op: &PreviousRows,
    dx: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, shape) = (dy.cuda()?, dy.shape());
    let n = shape.n_elements();
    let starts = op.starts.to_device(dy.device())?;
    let width: usize = shape[2..].iter().product();
    let args = args![
        dy,
        &starts,
        &*dx,
        n as i64,
        int(OP, shape[1])?,
        int(OP, width)?,
        int(OP, shape.last_dim())?,
        int(OP, op.channels.start)?,
        int(OP, op.channels.end)?,
        op.at_start == AtStart::Own,
        accumulate,
    ];
    let extent = Extent::elementwise(cuda, n);
    cuda.launch(&KERNELS, dy.dtype(), "previous_rows_backward", extent, args)
}
