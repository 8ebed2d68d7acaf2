//! The masked, scaled copy on a GPU: the same numbers are kept as on the CPU.

use crate::cuda::{Extent, Source, args, source};
use crate::{Philox, Result, Tensor};

pub(crate) static KERNELS: Source = source!("dropout", "kernel.cu");

/// `y (+)= x / (1 − p)` where the random number of the element is at least `p`, else 0.
pub(super) fn apply(
    x: &Tensor,
    p: f32,
    rng: Philox,
    y: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let threshold = (f64::from(p) * 16_777_216.0).ceil() as i32;
    let (seed, stream) = rng.name();
    let args = args![x, y, n as i64, seed, stream, threshold, 1.0 / (1.0 - p), accumulate];
    cuda.launch(&KERNELS, x.dtype(), "dropout", Extent::elementwise(cuda, n), args)
}
