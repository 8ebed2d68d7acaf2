//! The normalisation on a GPU, alone and after a residual addition.

use crate::autograd::Gradients;
use crate::cuda::{Source, args, int, source};
use crate::ops::rows_cuda;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("rms_norm", "kernel.cu");
const OP: &str = "rms_norm";

/// The numbers of `rstd = 1 / √(mean(x²) + eps)` and of the scale `weight + offset`.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    pub(crate) eps: f32,
    pub(crate) offset: f32,
}

/// Normalises the rows of `x`.
pub(super) fn forward(
    x: &Tensor,
    weight: &Tensor,
    Scaling { eps, offset }: Scaling,
    y: &mut Tensor,
    rstd: &mut Tensor,
) -> Result<()> {
    let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
    let args = args![x, weight, y, rstd, eps, offset, rows, d];
    x.cuda()?.launch(&KERNELS, x.dtype(), "rms_norm_forward", rows_cuda::forward(x, 1024), args)
}

/// Computes `sum = x + delta` and its normalised rows.
pub(crate) fn add_forward(
    (x, delta, weight): (&Tensor, &Tensor, &Tensor),
    Scaling { eps, offset }: Scaling,
    (sum, normed, rstd): (&mut Tensor, &mut Tensor, &mut Tensor),
) -> Result<()> {
    let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
    let args = args![x, delta, weight, sum, normed, rstd, eps, offset, rows, d];
    x.cuda()?.launch(&KERNELS, x.dtype(), "add_rms_norm_forward", rows_cuda::forward(x, 1024), args)
}

/// The inputs of backward.
pub(crate) struct Saved<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: &'a Tensor,
    pub(crate) rstd: &'a Tensor,
    pub(crate) offset: f32,
}

impl Saved<'_> {
    /// `dx = base + …` if wanted (`base` may be `dx`), and the sums of each block for `dweight` if
    /// wanted: one pass.
    fn run(
        &self,
        dy: &Tensor,
        base: Option<u64>,
        dx: Option<&Tensor>,
        wants_weight: bool,
    ) -> Result<Option<Tensor>> {
        let &Self { x, weight, rstd, offset } = self;
        let cuda = x.cuda()?;
        let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
        let extent = rows_cuda::backward(cuda, x, 640, usize::from(wants_weight));
        let partials = wants_weight.then(|| rows_cuda::partials(x, &extent)).transpose()?;
        let args =
            args![x, weight, rstd, dy, base.unwrap_or(0), dx, partials.as_ref(), offset, rows, d];
        cuda.launch(&KERNELS, x.dtype(), "rms_norm_backward", extent, args)?;
        Ok(partials)
    }

    /// Adds the blocks' sums to the gradient of the weight, input `index`.
    fn add_partials(
        &self,
        partials: Option<Tensor>,
        grads: &mut Gradients<'_>,
        index: usize,
    ) -> Result<()> {
        let Some(partials) = partials else { return Ok(()) };
        let kernel = (&KERNELS, "rms_norm_sum_partials");
        rows_cuda::add_partials(kernel, self.x, &partials, grads, (index, self.weight))
    }

    /// Gradients of `x` and `weight`, inputs 0 and 1.
    pub(super) fn backward(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let wants_weight = grads.wants(1);
        let run = |base, dx: Option<&Tensor>| self.run(dy, base, dx, wants_weight);
        let partials = rows_cuda::write_input(self.x, grads, run)?;
        self.add_partials(partials, grads, 1)
    }

    /// After a residual addition: the gradient that both terms share, which is `d_sum` (if any)
    /// plus what comes through the normalisation; and the weight's, input 2.
    pub(crate) fn backward_sum(
        &self,
        d_sum: Option<&Tensor>,
        d_normed: &Tensor,
        grads: &mut Gradients<'_>,
    ) -> Result<Option<Tensor>> {
        let total = super::super::total_room(self.x, d_sum, grads)?;
        let base = d_sum.map(Tensor::device_ptr);
        let partials = self.run(d_normed, base, total.as_ref(), grads.wants(2))?;
        self.add_partials(partials, grads, 2)?;
        Ok(total)
    }
}
