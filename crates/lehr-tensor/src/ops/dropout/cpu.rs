//! The masked, scaled copy for forward and backward.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use crate::Philox;

/// `y (+)= x / (1 − p)` where the random number of the element is at least `p`, else 0.
pub(super) fn apply(x: &[f32], p: f32, rng: Philox, y: &mut [f32], accumulate: bool) {
    // `(word >> 8) · 2^−24 >= p` in whole numbers; both products with 2^24 are exact.
    let threshold = (f64::from(p) * 16_777_216.0).ceil() as u32;
    let scale = 1.0 / (1.0 - p);
    threads::run_chunks(y, CHUNK, |index, y| {
        let start = index * CHUNK;
        let block = (start / 4) as u64;
        let x = &x[start..start + y.len()];
        dispatch(Apply { x, rng, block, threshold, scale, y, accumulate });
    });
}

struct Apply<'a> {
    x: &'a [f32],
    rng: Philox,
    /// Number of the first block of random words.
    block: u64,
    threshold: u32,
    scale: f32,
    y: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Apply<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Blocks drawn at once, so that their rounds overlap in the processor.
        const BLOCKS: usize = 16;
        let mut words = [[0u32; 4]; BLOCKS];
        let mut block = self.block;
        for (x, y) in self.x.chunks(4 * BLOCKS).zip(self.y.chunks_mut(4 * BLOCKS)) {
            for (i, words) in words.iter_mut().enumerate() {
                *words = self.rng.block(block + i as u64);
            }
            for ((x, y), word) in x.iter().zip(y).zip(words.as_flattened()) {
                let value = if word >> 8 >= self.threshold { x * self.scale } else { 0.0 };
                *y = if self.accumulate { *y + value } else { value };
            }
            block += BLOCKS as u64;
        }
    }
}
