//! Writing into tensors that exist, on a GPU: copies at strides, sums, products with a number.

use lehr_kernels::strided::{RunSize, Runs};

use crate::cuda::{Extent, Source, args, source};
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("copy", "kernel.cu");

/// Copies runs of elements or, if `accumulate`, adds them to what is there.
pub(crate) fn copy_runs(
    RunSize { n, len }: RunSize,
    src: &Tensor,
    from: Runs,
    dst: &mut Tensor,
    to: Runs,
    accumulate: bool,
) -> Result<()> {
    let cuda = src.cuda()?;
    let [from_at, from_stride, to_at, to_stride] =
        [from.offset, from.stride, to.offset, to.stride].map(|n| n as i64);
    let args =
        args![src, from_at, from_stride, &*dst, to_at, to_stride, n as i64, len as i64, accumulate];
    cuda.launch(&KERNELS, src.dtype(), "copy_runs", Extent::elementwise(cuda, n * len), args)
}

/// `dst += src`; `dst` may be in f32 beside a `src` of 16 bits.
pub(crate) fn add_assign(dst: &mut Tensor, src: &Tensor) -> Result<()> {
    if dst.dtype() != src.dtype() && dst.dtype() != DType::F32 {
        return add_assign(dst, &src.cast(dst.dtype())?);
    }
    let (cuda, n) = (src.cuda()?, src.shape().n_elements());
    let name = if dst.dtype() == src.dtype() { "add_assign" } else { "add_assign_f32" };
    let args = args![&*dst, src, n as i64];
    cuda.launch(&KERNELS, src.dtype(), name, Extent::elementwise(cuda, n), args)
}

/// `y += weight (x - y)` for f32 tensors.
pub(crate) fn lerp(y: &mut Tensor, x: &Tensor, weight: f32) -> Result<()> {
    let (cuda, n) = (y.cuda()?, y.shape().n_elements());
    let args = args![&*y, x, n as i64, weight];
    cuda.launch(&KERNELS, DType::F32, "lerp", Extent::elementwise(cuda, n), args)
}

/// `x *= factor`.
pub(crate) fn scale(x: &mut Tensor, factor: f32) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let args = args![&*x, n as i64, factor];
    cuda.launch(&KERNELS, x.dtype(), "scale_in_place", Extent::elementwise(cuda, n), args)
}

/// `x *= factor` for a factor `[1]` that is on the device.
pub(crate) fn scale_by(x: &mut Tensor, factor: &Tensor) -> Result<()> {
    let (cuda, n, factor) = (x.cuda()?, x.shape().n_elements(), factor.to_f32()?);
    let args = args![&*x, n as i64, &factor, 1.0f32];
    cuda.launch(&KERNELS, x.dtype(), "scale_in_place_by", Extent::elementwise(cuda, n), args)
}
