//! Functions that write into a buffer and have no gradient.

use crate::cpu::simd::{Kernel, Simd, dispatch};
use crate::cpu::threads;

mod adamw;
mod norm;

pub use adamw::{AdamW, adamw};
pub use norm::{scale, sum_of_squares};

/// Numbers per task of elementwise kernels: 64 KiB, half of a second-level cache for two streams.
pub(crate) const CHUNK: usize = 1 << 14;

/// `dst += src`.
pub(crate) fn add_assign(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len());
    threads::run_chunks(dst, CHUNK, |index, dst| {
        dispatch(AddAssign { dst, src: &src[index * CHUNK..] });
    });
}

struct AddAssign<'a> {
    dst: &'a mut [f32],
    src: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (d, s) in self.dst.iter_mut().zip(self.src) {
            *d += s;
        }
    }
}
