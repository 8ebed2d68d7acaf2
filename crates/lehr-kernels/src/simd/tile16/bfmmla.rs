//! Tiles by `bfmmla` of ARMv8.6: a vector holds four steps of two rows, or of two columns, and the
//! instruction adds their 2 × 2 products to a vector of sums.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Block, SIDE, STEPS, TILE, WIDE};

/// Pairs of rows and of columns computed together: 16 vectors of sums and 8 of factors stay in the
/// 32 registers.
const PAIRS: usize = 4;
/// Steps of a vector.
const DEPTH: usize = 4;

/// # Safety
/// As [`super::Worker::multiply`]; the processor has BF16.
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn multiply(block: &Block) {
    let halves = [Some(block.a0), block.a1];
    for (half, a) in halves.into_iter().enumerate() {
        let Some(a) = a else { break };
        for row in (0..SIDE).step_by(2 * PAIRS) {
            for column in (0..WIDE).step_by(2 * PAIRS) {
                // SAFETY: promised by the caller.
                unsafe { part(block, a.add(row * STEPS), half * SIDE + row, column) };
            }
        }
    }
}

/// Computes 8 rows from `row`, whose left tiles start at `a`, times 8 columns from `column`.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "neon,bf16")]
unsafe fn part(block: &Block, a: *const u16, row: usize, column: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let b = block.b.add(column / SIDE * TILE + 2 * (column % SIDE));
        let from = |i: usize, j: usize| block.from.add((row + i) * block.from_stride + column + j);
        let mut sums: [[float32x4_t; PAIRS]; PAIRS] = std::array::from_fn(|i| {
            std::array::from_fn(|j| {
                vcombine_f32(vld1_f32(from(2 * i, 2 * j)), vld1_f32(from(2 * i + 1, 2 * j)))
            })
        });
        for tile in 0..block.n {
            let (a, b) = (a.add(tile * TILE), b.add(2 * tile * TILE));
            for quad in 0..STEPS / DEPTH {
                let columns = columns(b.add(2 * quad * STEPS));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let at = |i: usize| a.add(i * STEPS + quad * DEPTH);
                    let rows = vcombine_u16(vld1_u16(at(2 * i)), vld1_u16(at(2 * i + 1)));
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = bfmmla(*sum, rows, columns);
                    }
                }
            }
        }
        let to = |i: usize, j: usize| block.to.add((row + i) * block.to_stride + column + j);
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                vst1_f32(to(2 * i, 2 * j), vget_low_f32(*sum));
                vst1_f32(to(2 * i + 1, 2 * j), vget_high_f32(*sum));
            }
        }
    }
}

/// Returns four steps of 8 columns, two columns in a vector. In a right tile the first two steps of
/// all columns lie before the next two.
///
/// # Safety
/// `b` is the first of the columns in a right tile.
#[target_feature(enable = "neon,bf16")]
#[inline]
unsafe fn columns(b: *const u16) -> [uint16x8_t; PAIRS] {
    let load = |at: usize| {
        // SAFETY: promised by the caller.
        unsafe { vreinterpretq_u32_u16(vld1q_u16(b.add(at))) }
    };
    let half = |at: usize| -> [uint16x8_t; 2] {
        let (early, late) = (load(at), load(at + STEPS));
        let pairs = [vzip1q_u32(early, late), vzip2q_u32(early, late)];
        pairs.map(|pair| vreinterpretq_u16_u32(pair))
    };
    let ([c0, c1], [c2, c3]) = (half(0), half(8));
    [c0, c1, c2, c3]
}

/// Adds the products of two rows and two columns of four steps to their sums, row by row. The
/// standard library has no stable name for the instruction.
#[target_feature(enable = "neon,bf16")]
#[inline]
fn bfmmla(sums: float32x4_t, rows: uint16x8_t, columns: uint16x8_t) -> float32x4_t {
    let mut sums = sums;
    // SAFETY: it reads and writes registers alone, and callers promise that the processor has it.
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {rows:v}.8h, {columns:v}.8h",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
