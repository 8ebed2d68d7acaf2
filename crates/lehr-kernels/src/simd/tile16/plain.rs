//! Tiles by conversion to f32 and multiply-adds, on any processor.

use super::super::{Kernel, Simd, dispatch};
use super::{Block, SIDE, STEPS, TILE, WIDE};

/// # Safety
/// As [`super::Worker::multiply`].
pub(super) unsafe fn multiply(block: &Block) {
    dispatch(Rows(block));
}

struct Rows<'a>(&'a Block);

impl Kernel for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = self.0;
        let halves = [Some(block.a0), block.a1];
        // The two steps of each word of a right tile, as floats.
        let mut steps = [[[0.0f32; WIDE]; 2]; STEPS / 2];
        for tile in 0..block.n {
            for (pair, steps) in steps.iter_mut().enumerate() {
                for j in 0..WIDE {
                    let at = (2 * tile + j / SIDE) * TILE + pair * STEPS + 2 * (j % SIDE);
                    // SAFETY: the word lies within the pair of right tiles, as the caller promises.
                    let word = unsafe { [*block.b.add(at), *block.b.add(at + 1)] };
                    for (step, number) in steps.iter_mut().zip(word) {
                        step[j] = f32::from_bits(u32::from(number) << 16);
                    }
                }
            }
            for (half, a) in halves.into_iter().enumerate() {
                let Some(a) = a else { break };
                for i in 0..SIDE {
                    let row = half * SIDE + i;
                    let from = match tile {
                        0 => block.from.wrapping_add(row * block.from_stride),
                        _ => block.to.wrapping_add(row * block.to_stride).cast_const(),
                    };
                    let to = block.to.wrapping_add(row * block.to_stride);
                    for j in (0..WIDE).step_by(S::LANES) {
                        // SAFETY: row i of the left tile and 32 floats of each row of C are the
                        // caller's promise; LANES divides 32.
                        unsafe {
                            let mut sum = s.load(from.add(j));
                            for (k, step) in steps.as_flattened().iter().enumerate() {
                                let a = *a.add(tile * TILE + i * STEPS + k);
                                let a = s.splat(f32::from_bits(u32::from(a) << 16));
                                sum = s.fma(a, s.load(step.as_ptr().add(j)), sum);
                            }
                            s.store(to.add(j), sum);
                        }
                    }
                }
            }
        }
    }
}
