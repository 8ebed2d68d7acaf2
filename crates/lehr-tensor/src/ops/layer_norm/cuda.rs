//! The normalisation on a GPU, alone and after a residual addition.

use super::Stats;
use crate::autograd::Gradients;
use crate::cuda::{Source, args, int, source};
use crate::ops::rows_cuda;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = source!("layer_norm", "kernel.cu");
const OP: &str = "layer_norm";

/// Normalises the rows of `x`.
pub(super) fn forward(
    x: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    eps: f32,
    y: &mut Tensor,
    stats: &mut Stats,
) -> Result<()> {
    let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
    let args = args![x, weight, bias, y, &stats.mean, &stats.rstd, eps, rows, d];
    x.cuda()?.launch(&KERNELS, x.dtype(), "layer_norm_forward", rows_cuda::forward(x, 896), args)
}

/// Computes `sum = x + delta` and its normalised rows.
pub(crate) fn add_forward(
    (x, delta): (&Tensor, &Tensor),
    (weight, bias): (&Tensor, Option<&Tensor>),
    eps: f32,
    (sum, normed, stats): (&mut Tensor, &mut Tensor, &mut Stats),
) -> Result<()> {
    let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
    let args = args![x, delta, weight, bias, sum, normed, &stats.mean, &stats.rstd, eps, rows, d];
    x.cuda()?.launch(
        &KERNELS,
        x.dtype(),
        "add_layer_norm_forward",
        rows_cuda::forward(x, 896),
        args,
    )
}

/// The inputs of backward.
pub(crate) struct Saved<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: &'a Tensor,
    pub(crate) stats: &'a Stats,
}

/// The sums of each block, for the gradients of weight and bias.
type Partials = [Option<Tensor>; 2];

impl Saved<'_> {
    /// `dx = base + …` if wanted (`base` may be `dx`), and the sums of each block that are wanted:
    /// one pass.
    fn run(
        &self,
        dy: &Tensor,
        base: Option<u64>,
        dx: Option<&Tensor>,
        wanted: [bool; 2],
    ) -> Result<Partials> {
        let &Self { x, weight, stats } = self;
        let cuda = x.cuda()?;
        let (rows, d) = (int(OP, x.shape().n_rows())?, int(OP, x.shape().last_dim())?);
        // The kernel keeps both sums or none.
        let n_sums = if wanted.contains(&true) { 2 } else { 0 };
        let extent = rows_cuda::backward(cuda, x, 512, n_sums);
        let room = |wanted: bool| wanted.then(|| rows_cuda::partials(x, &extent)).transpose();
        let [dw, db] = [room(wanted[0])?, room(wanted[1])?];
        let base = base.unwrap_or(0);
        let args = args![
            x,
            weight,
            &stats.mean,
            &stats.rstd,
            dy,
            base,
            dx,
            dw.as_ref(),
            db.as_ref(),
            rows,
            d
        ];
        cuda.launch(&KERNELS, x.dtype(), "layer_norm_backward", extent, args)?;
        Ok([dw, db])
    }

    /// Adds the blocks' sums to the gradients of weight and bias, inputs `index` and the one after
    /// it.
    fn add_partials(
        &self,
        partials: Partials,
        grads: &mut Gradients<'_>,
        index: usize,
    ) -> Result<()> {
        for (i, partials) in partials.into_iter().enumerate() {
            let Some(partials) = partials else { continue };
            let kernel = (&KERNELS, "layer_norm_sum_partials");
            rows_cuda::add_partials(kernel, self.x, &partials, grads, (index + i, self.weight))?;
        }
        Ok(())
    }

    fn wanted(grads: &Gradients<'_>, index: usize) -> [bool; 2] {
        [grads.wants(index), grads.n_inputs() > index + 1 && grads.wants(index + 1)]
    }

    /// Gradients of `x`, `weight` and `bias`, inputs 0 to 2.
    pub(super) fn backward(&self, dy: &Tensor, grads: &mut Gradients<'_>) -> Result<()> {
        let wanted = Self::wanted(grads, 1);
        let run = |base, dx: Option<&Tensor>| self.run(dy, base, dx, wanted);
        let partials = rows_cuda::write_input(self.x, grads, run)?;
        self.add_partials(partials, grads, 1)
    }

    /// After a residual addition: the gradient that both terms share, which is `d_sum` (if any)
    /// plus what comes through the normalisation; and those of weight and bias, inputs 2 and 3.
    pub(crate) fn backward_sum(
        &self,
        d_sum: Option<&Tensor>,
        d_normed: &Tensor,
        grads: &mut Gradients<'_>,
    ) -> Result<Option<Tensor>> {
        let total = super::super::total_room(self.x, d_sum, grads)?;
        let base = d_sum.map(Tensor::device_ptr);
        let partials = self.run(d_normed, base, total.as_ref(), Self::wanted(grads, 2))?;
        self.add_partials(partials, grads, 2)?;
        Ok(total)
    }
}
