//! Changes of the element type on a GPU.

use crate::cuda::{Extent, Source, args, source};
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("cast", "kernel.cu");

/// `y = x`, rounded to the type of `y`, which is another.
pub(super) fn cast(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (cuda, n) = (x.cuda()?, x.shape().n_elements());
    let extent = Extent::elementwise(cuda, n);
    let (from, to, n) = (x.dtype(), y.dtype(), n as i64);
    match (from, to) {
        (DType::F32, _) => cuda.launch(&KERNELS, to, "cast_from_f32", extent, args![x, y, n]),
        (_, DType::F32) => {
            cuda.launch(&KERNELS, from, "cast_to_f32", extent, args![x, y, n, false])
        }
        (DType::BF16, _) => cuda.launch(&KERNELS, from, "cast_bf16_to_f16", extent, args![x, y, n]),
        _ => cuda.launch(&KERNELS, from, "cast_f16_to_bf16", extent, args![x, y, n]),
    }
}
