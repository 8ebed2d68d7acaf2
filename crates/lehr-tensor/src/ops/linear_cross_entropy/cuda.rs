//! The pass over the vocabulary on a GPU, chunk by chunk of rows.

use super::HeadWeight;
use super::labels::Labelled;
use crate::cuda::blas::{Matmul, Operand};
use crate::cuda::{Cuda, Extent, Source, args, int, source};
use crate::ops::linear::cuda as linear;
use crate::ops::linear_q::cuda as linear_q;
use crate::ops::rows_cuda::lanes;
use crate::{DType, Device, Result, Shape, Tensor};

pub(crate) static KERNELS: Source = source!("linear_cross_entropy", "kernel.cu");
const OP: &str = "linear_cross_entropy";

/// Largest number of logits in one chunk: 512 MiB in 16 bits. The products are then tall enough for
/// the chip, and the gradient of the weight, to which every chunk adds, is read and written few
/// times.
const LOGITS_MAX: usize = 1 << 28;
/// Smallest number of rows in a chunk.
const ROWS_MIN: usize = 256;

/// The form of the loss of one row of logits.
#[derive(Clone, Copy)]
pub(super) struct RowLoss {
    pub(super) z_loss: f32,
    pub(super) softcap: Option<f32>,
}

/// A language-model or classifier head with its inputs and labels.
pub(super) struct Head<'a> {
    /// The labelled rows.
    pub(super) x: &'a Tensor,
    pub(super) weight: HeadWeight<'a>,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) rows: &'a Labelled,
    pub(super) loss: RowLoss,
}

/// Rows of logits on the device, their labels and their losses.
pub(super) struct Chunk<'a> {
    pub(super) logits: &'a Tensor,
    /// Numbers from one row of logits to the next.
    pub(super) stride: usize,
    pub(super) n: usize,
    pub(super) n_vocabulary: usize,
    /// Addresses of its labels and losses on the device.
    pub(super) labels: u64,
    pub(super) losses: u64,
    /// Number of its first row among the factors.
    pub(super) first: usize,
}

/// Upstream gradients of the losses of the rows.
pub(super) enum Factors<'a> {
    Same(f32),
    PerRow(&'a Tensor),
}

/// Buffers of the gradients; those of `x` and the bias are overwritten.
#[derive(Default)]
pub(super) struct HeadGrads<'a> {
    pub(super) dx: Option<&'a mut Tensor>,
    /// In f32, and whether it is added to what is there.
    pub(super) dw: Option<(&'a mut Tensor, bool)>,
    /// In f32.
    pub(super) db: Option<&'a mut Tensor>,
}

impl Head<'_> {
    /// The loss of each labelled row, and gradients of `Σ factor · loss` if there are factors.
    pub(super) fn run(
        &self,
        losses: &mut Tensor,
        factors: Option<&Factors<'_>>,
        mut grads: HeadGrads<'_>,
    ) -> Result<()> {
        let (x, weight) = (self.x, self.weight);
        let cuda = x.cuda()?;
        let &[v, d] = &*weight.shape() else { unreachable!("checked by the op") };
        let n = self.rows.len();
        if n == 0 {
            if let Some((dw, false)) = grads.dw {
                dw.fill_zero()?;
            }
            return grads.db.map_or(Ok(()), Tensor::fill_zero);
        }
        // A stored matrix is decoded once for all chunks.
        let (rows_of_weight, _held) = match weight {
            HeadWeight::Dense(weight) => (linear::rows(weight, d), None),
            HeadWeight::Stored(weight) => linear_q::numbers(weight, x)?,
        };
        let transposed = Operand { transposed: true, ..rows_of_weight };
        // Rows of logits start on 128 bytes, for the products; a bias is as long as a row.
        let ld = if self.bias.is_some() { v } else { v.next_multiple_of(64) };
        let most = (LOGITS_MAX / ld.max(1)).max(ROWS_MIN);
        let chunk = n.div_ceil(n.div_ceil(most));
        let logits = x.like([chunk.min(n), ld])?;
        let labels = self.rows.labels_on(x.device())?;
        let at = |t: &Tensor, row: usize, width: usize| {
            t.device_ptr() + (row * width * t.dtype().size()) as u64
        };
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            let z = Operand::rows(logits.device_ptr(), logits.dtype(), ld);
            let x_rows = Operand::rows(at(x, first, d), x.dtype(), d);
            let bias = self.bias.map(Tensor::device_ptr);
            Matmul::new((rows, v, d), x_rows, transposed, z).bias(bias).run(cuda)?;
            let chunk = Chunk {
                logits: &logits,
                stride: ld,
                n: rows,
                n_vocabulary: v,
                labels: at(&labels, first, 1),
                losses: at(losses, first, 1),
                first,
            };
            self.loss.turn(cuda, &chunk, factors)?;
            if let Some(dx) = grads.dx.as_deref_mut() {
                let out = Operand::rows(at(dx, first, d), dx.dtype(), d);
                Matmul::new((rows, d, v), z, rows_of_weight, out).run(cuda)?;
            }
            if let Some((dw, accumulate)) = grads.dw.as_mut() {
                let transposed = Operand::transposed(logits.device_ptr(), logits.dtype(), ld);
                let product = Matmul::new((v, d, rows), transposed, x_rows, linear::rows(dw, d));
                product.accumulate(*accumulate || first > 0).run(cuda)?;
            }
            if let Some(db) = grads.db.as_deref_mut() {
                linear::column_sums(rows, &logits, v, db, first > 0)?;
            }
        }
        Ok(())
    }
}

impl RowLoss {
    /// Computes the losses of rows of logits. With factors, it also turns the logits into their
    /// gradient in place.
    pub(super) fn turn(
        &self,
        cuda: &Cuda,
        chunk: &Chunk<'_>,
        factors: Option<&Factors<'_>>,
    ) -> Result<()> {
        /// Shared memory for the logits of a row: two blocks fit in a multiprocessor.
        const CACHE_BYTES: usize = 96 << 10;
        let &Chunk { logits, stride, n, n_vocabulary: v, labels, losses, first } = chunk;
        let lanes = lanes(logits.dtype());
        let threads = (v.div_ceil(4 * lanes).next_multiple_of(32)).clamp(32, 512);
        let n_cached = match factors {
            Some(_) => (v / lanes * lanes).min(CACHE_BYTES / logits.dtype().size()),
            None => 0,
        };
        let mut extent = Extent::line(n, threads as u32);
        extent.shared_bytes = (n_cached * logits.dtype().size()) as u32;
        let (factor, each) = match factors {
            Some(Factors::Same(factor)) => (*factor, 0),
            Some(Factors::PerRow(each)) => (0.0, each.device_ptr() + 4 * first as u64),
            None => (0.0, 0),
        };
        let args = args![
            logits,
            labels,
            losses,
            int(OP, n)?,
            int(OP, v)?,
            stride as i64,
            self.softcap.unwrap_or(0.0),
            self.z_loss,
            factor,
            each,
            0u64,
            factors.is_some(),
            int(OP, n_cached)?,
        ];
        cuda.launch(&KERNELS, logits.dtype(), "cross_entropy_rows", extent, args)
    }
}

/// `Σ losses / normalizer` as `[1]`.
pub(super) fn mean(losses: &Tensor, normalizer: f32) -> Result<Tensor> {
    let out = losses.like_f32([1])?;
    let args = args![losses, &out, int(OP, losses.shape().n_elements())?, normalizer];
    losses.cuda()?.launch(&KERNELS, DType::F32, "sum_losses", Extent::line(1, 1024), args)?;
    Ok(out)
}

/// Blocks of rows of `d` elements; a thread moves four packs.
fn rows_extent(n: usize, d: usize, dtype: DType) -> Extent {
    let columns = d.div_ceil(4 * lanes(dtype)).next_power_of_two().min(256);
    let mut extent = Extent::line(n.div_ceil(256 / columns), 0);
    extent.block = [columns as u32, (256 / columns) as u32, 1];
    extent
}

/// The rows of `x [.., d]` at `positions`.
pub(super) fn gather(x: &Tensor, positions: &Tensor, out: &mut Tensor) -> Result<()> {
    let (n, d) = (positions.shape().n_elements(), x.shape().last_dim());
    let args = args![x, positions, out, int(OP, n)?, int(OP, d)?];
    x.cuda()?.launch(
        &KERNELS,
        x.dtype(),
        "gather_labelled_rows",
        rows_extent(n, d, x.dtype()),
        args,
    )
}

/// Writes `rows` at their positions with zeros elsewhere, or adds them.
pub(super) fn scatter(
    positions: &Tensor,
    rows: &Tensor,
    d: usize,
    out: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (n, n_out) = (positions.shape().n_elements(), out.shape().n_elements() / d.max(1));
    let args = args![rows, positions, out, int(OP, n)?, int(OP, n_out)?, int(OP, d)?, accumulate];
    let extent = rows_extent(if accumulate { n } else { n_out }, d, rows.dtype());
    rows.cuda()?.launch(&KERNELS, rows.dtype(), "scatter_labelled_rows", extent, args)
}

/// Allocates the wanted gradients.
pub(super) fn room(
    wanted: bool,
    device: Device,
    shape: Shape,
    dtype: DType,
) -> Result<Option<Tensor>> {
    wanted.then(|| Tensor::uninit_on(device, shape, dtype)).transpose()
}
