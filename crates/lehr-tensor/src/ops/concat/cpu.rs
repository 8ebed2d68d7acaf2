//! Copies of strided blocks, for `concat` and `slice`.

use std::ops::Range;

use crate::cpu::CHUNK;
use crate::cpu::threads::{self, SharedMut};

/// Where equal blocks of numbers lie: block `i` starts at `offset + i · stride`.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

impl Blocks {
    /// Blocks of `len` numbers without gaps.
    pub(crate) fn packed(len: usize) -> Self {
        Self { offset: 0, stride: len }
    }

    fn start(self, block: usize) -> usize {
        self.offset + block * self.stride
    }
}

/// Copies `n` blocks of `len` numbers, or adds them to what is there.
pub(crate) fn copy(
    (n, len): (usize, usize),
    src: &[f32],
    from: Blocks,
    dst: &mut [f32],
    to: Blocks,
    accumulate: bool,
) {
    debug_assert!(len <= to.stride || n <= 1, "blocks do not overlap");
    let dst = SharedMut::new(dst);
    for_pieces((n, len), |block, piece| {
        let src = &src[from.start(block)..][piece.clone()];
        // SAFETY: pieces of different numbers do not overlap.
        let dst = unsafe { dst.slice(to.start(block) + piece.start, piece.len()) };
        if accumulate {
            for (dst, src) in dst.iter_mut().zip(src) {
                *dst += src;
            }
        } else {
            dst.copy_from_slice(src);
        }
    });
}

/// Sets `n` blocks of `len` numbers to 0.
pub(crate) fn clear((n, len): (usize, usize), dst: &mut [f32], at: Blocks) {
    debug_assert!(len <= at.stride || n <= 1, "blocks do not overlap");
    let dst = SharedMut::new(dst);
    for_pieces((n, len), |block, piece| {
        // SAFETY: pieces of different numbers do not overlap.
        unsafe { dst.slice(at.start(block) + piece.start, piece.len()) }.fill(0.0);
    });
}

/// Runs `body(block, piece)` in parallel for pieces that cover all blocks; a task has about
/// [`CHUNK`] numbers.
fn for_pieces((n, len): (usize, usize), body: impl Fn(usize, Range<usize>) + Sync) {
    if n == 0 || len == 0 {
        return;
    }
    if len > CHUNK {
        let pieces = len.div_ceil(CHUNK);
        threads::run(n * pieces, |task| {
            let start = task % pieces * CHUNK;
            body(task / pieces, start..len.min(start + CHUNK));
        });
        return;
    }
    let per_task = CHUNK / len;
    threads::run(n.div_ceil(per_task), |task| {
        for block in task * per_task..n.min((task + 1) * per_task) {
            body(block, 0..len);
        }
    });
}
