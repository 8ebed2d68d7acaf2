//! Functions of whole slices.

use crate::simd::{Kernel, Simd, dispatch};
use crate::{CHUNK, threads};

/// Adds `src` to `dst`, element by element, in parallel: `dst += src`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(dst: &mut [f32], src: &[f32]) {
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
