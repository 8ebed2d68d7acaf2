//! Tiles by `vdpbf16ps`: a vector holds 16 columns of two steps, and multiplies two steps of one
//! row, repeated 16 times.

use std::arch::x86_64::*;

use super::{Block, SIDE, STEPS, TILE};

/// Rows computed together: 8 × 2 sums in registers cover the instruction's latency.
const ROWS: usize = 8;

/// # Safety
/// As [`super::Worker::multiply`]; the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(block: &Block) {
    let halves = [Some(block.a0), block.a1];
    for (half, a) in halves.into_iter().enumerate() {
        let Some(a) = a else { break };
        for first in (0..SIDE).step_by(ROWS) {
            // SAFETY: promised by the caller.
            unsafe { rows(block, a.add(first * STEPS), half * SIDE + first) };
        }
    }
}

/// # Safety
/// As [`multiply`], for [`ROWS`] rows from `row`, whose left tiles start at `a`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows(block: &Block, a: *const u16, row: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let from = block.from.add(row * block.from_stride);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (i, sum) in sums.iter_mut().enumerate() {
            for (v, sum) in sum.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(from.add(i * block.from_stride + v * SIDE));
            }
        }
        for tile in 0..block.n {
            let (a, b) = (a.add(tile * TILE), block.b.add(2 * tile * TILE));
            for pair in 0..STEPS / 2 {
                let b: [__m512bh; 2] = std::array::from_fn(|v| {
                    let at = b.add(v * TILE + pair * STEPS);
                    std::mem::transmute(_mm512_loadu_si512(at.cast()))
                });
                for (i, sum) in sums.iter_mut().enumerate() {
                    let word = a.add(i * STEPS + 2 * pair).cast::<i32>().read_unaligned();
                    let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word));
                    for v in 0..2 {
                        sum[v] = _mm512_dpbf16_ps(sum[v], a, b[v]);
                    }
                }
            }
        }
        let to = block.to.add(row * block.to_stride);
        for (i, sum) in sums.iter().enumerate() {
            for (v, sum) in sum.iter().enumerate() {
                _mm512_storeu_ps(to.add(i * block.to_stride + v * SIDE), *sum);
            }
        }
    }
}
