//! In-place functions on a GPU.

use lehr_kernels::strided::{RunSize, Runs};

use super::{AdamW, Clip};
use crate::copy::copy_runs;
pub(crate) use crate::copy::{scale, scale_by};
use crate::cuda::{Extent, Source, args, int, source};
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("inplace", "kernel.cu");
const OP: &str = "inplace";

/// Elements per block of kernels over a list of tensors.
const CHUNK: usize = 16_384;

/// Divides a list of tensors into chunks for the kernels: pairs of tensor and chunk.
fn chunks(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let cut = |(tensor, n): (usize, usize)| {
        (0..n.div_ceil(CHUNK)).flat_map(move |chunk| [tensor as i32, chunk as i32])
    };
    lengths.enumerate().flat_map(cut).collect()
}

/// Uploads a table of words to the device of `beside`.
pub(super) fn table(words: &[u64], beside: &Tensor) -> Result<Tensor> {
    let halves: Vec<i32> =
        words.iter().flat_map(|w| [*w as u32 as i32, (*w >> 32) as u32 as i32]).collect();
    Tensor::from_ids(&halves, [halves.len()])?.to_device(beside.device())
}

/// `Σ x²` over all elements of f32 tensors on one GPU, as bits of an f64 `[2]` on it. Sums of fixed
/// chunks are added in a fixed order. A `loss` that is not finite makes the sum so.
pub(super) fn sum_of_squares(tensors: &[Tensor], loss: Option<&Tensor>) -> Result<Tensor> {
    let first = &tensors[0];
    let cuda = first.cuda()?;
    let words: Vec<u64> =
        tensors.iter().flat_map(|t| [t.device_ptr(), t.shape().n_elements() as u64]).collect();
    let cut = chunks(tensors.iter().map(|t| t.shape().n_elements()));
    let n_chunks = cut.len() / 2;
    let (words, cut) =
        (table(&words, first)?, Tensor::from_ids(&cut, [cut.len()])?.to_device(first.device())?);
    let (partials, sum) = (first.like_f32([n_chunks, 2])?, first.like_f32([2])?);
    let n = int(OP, n_chunks)?;
    let args = args![&words, &cut, n, CHUNK as i32, &partials];
    cuda.launch(&KERNELS, DType::F32, "sum_of_squares", Extent::line(n_chunks, 256), args)?;
    let args = args![&partials, n, &sum, loss];
    cuda.launch(&KERNELS, DType::F32, "sum_of_squares_finish", Extent::line(1, 256), args)?;
    Ok(sum)
}

/// An f64 from its bits, `[2]`.
pub(super) fn f64_of(bits: &Tensor) -> Result<f64> {
    let bits = bits.to_host()?;
    let [low, high] = [0, 1].map(|i| u64::from(bits.data()[i].to_bits()));
    Ok(f64::from_bits(low | high << 32))
}

/// A parameter with the tensors of its update. All are on one GPU and in f32, except the copy in
/// the computing type.
pub(crate) struct Item<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) shadow: Option<&'a Tensor>,
    pub(crate) grad: &'a Tensor,
    pub(crate) m: &'a Tensor,
    pub(crate) v: &'a Tensor,
    /// Factor on the learning rate.
    pub(crate) lr_scale: f32,
    pub(crate) weight_decay: f32,
}

/// [`super::adamw`] over all items in one launch.
pub(super) fn adamw_all(items: &[Item<'_>], rule: AdamW, clip: Option<Clip<'_>>) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let cuda = first.param.cuda()?;
    let words: Vec<u64> = items
        .iter()
        .flat_map(|item| {
            let shadow = item.shadow.map_or(0, Tensor::device_ptr);
            let factors =
                u64::from(item.lr_scale.to_bits()) | u64::from(item.weight_decay.to_bits()) << 32;
            let [param, grad, m, v] =
                [item.param, item.grad, item.m, item.v].map(Tensor::device_ptr);
            [param, grad, m, v, shadow, item.param.shape().n_elements() as u64, factors]
        })
        .collect();
    let cut = chunks(items.iter().map(|item| item.param.shape().n_elements()));
    let n_chunks = cut.len() / 2;
    let cut = Tensor::from_ids(&cut, [cut.len()])?.to_device(first.param.device())?;
    let words = table(&words, first.param)?;
    let dtype = items.iter().find_map(|item| item.shadow).map_or(DType::F32, Tensor::dtype);
    let (step_size, v_scale) = rule.corrections();
    let AdamW { lr, beta1, beta2, eps, grad_scale, cautious, lazy, .. } = rule;
    let args = args![
        &words,
        &cut,
        int(OP, n_chunks)?,
        CHUNK as i32,
        lr,
        beta1,
        beta2,
        eps,
        step_size,
        v_scale,
        clip.and_then(|clip| clip.squared_norm.on_cuda()),
        clip.map_or(0.0, |clip| clip.max_norm),
        grad_scale,
        cautious,
        lazy,
    ];
    cuda.launch(&KERNELS, dtype, "adamw", Extent::line(n_chunks, 256), args)
}

/// Writes the packed runs of `new` to the places `to` of `all`.
pub(super) fn write_runs(all: &mut Tensor, new: &Tensor, size: RunSize, to: Runs) -> Result<()> {
    copy_runs(size, new, Runs::packed(size.len), all, to, false)
}

/// Returns the index of the largest value of each row of `x [n, width]`: the first of equal ones,
/// never NaN.
pub(crate) fn argmax(x: &Tensor) -> Result<Tensor> {
    let (cuda, rows, width) = (x.cuda()?, x.shape().n_rows(), x.shape().last_dim());
    let ids = Tensor::uninit_on(x.device(), [rows], DType::I32)?;
    /// Limit of the second dimension of a grid.
    const ROWS_MAX: usize = 65_535;
    for first in (0..rows).step_by(ROWS_MAX) {
        let mut extent = Extent::line(1, if rows < 64 { 1024 } else { 256 });
        extent.grid[1] = (rows - first).min(ROWS_MAX) as u32;
        let from = x.device_ptr() + (first * width * x.dtype().size()) as u64;
        let args = args![from, int(OP, width)?, ids.device_ptr() + 4 * first as u64];
        cuda.launch(&KERNELS, x.dtype(), "argmax", extent, args)?;
    }
    Ok(ids)
}
