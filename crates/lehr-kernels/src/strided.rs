//! Copies of runs of numbers at a fixed distance.

use std::ops::Range;

use crate::CHUNK;
use crate::threads::{self, SharedMut};

/// Positions of runs of equal length: run `i` starts at element `offset + i · stride`.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Start of the first run, in elements.
    pub offset: usize,
    /// From the start of a run to that of the next, in elements.
    pub stride: usize,
}

/// Number and length of runs.
#[derive(Clone, Copy, Debug)]
pub struct RunSize {
    /// Number of runs.
    pub n: usize,
    /// Elements per run.
    pub len: usize,
}

impl Runs {
    /// Returns the positions of runs of `len` elements without gaps.
    #[must_use]
    pub fn packed(len: usize) -> Self {
        Self { offset: 0, stride: len }
    }

    fn start(self, run: usize) -> usize {
        self.offset + run * self.stride
    }
}

/// Copies runs from `src` to `dst` or, if `accumulate`, adds them to what is there. Parallel.
///
/// # Panics
/// If a run is outside of its slice.
pub fn copy(size: RunSize, src: &[f32], from: Runs, dst: &mut [f32], to: Runs, accumulate: bool) {
    debug_assert!(size.len <= to.stride || size.n <= 1, "runs do not overlap");
    let dst = SharedMut::new(dst);
    for_pieces(size, |run, piece| {
        let src = &src[from.start(run)..][piece.clone()];
        // SAFETY: pieces of different numbers do not overlap.
        let dst = unsafe { dst.slice(to.start(run) + piece.start, piece.len()) };
        if accumulate {
            for (dst, src) in dst.iter_mut().zip(src) {
                *dst += src;
            }
        } else {
            dst.copy_from_slice(src);
        }
    });
}

/// Sets runs to 0, in parallel.
///
/// # Panics
/// If a run is outside of the slice.
pub fn clear(size: RunSize, dst: &mut [f32], at: Runs) {
    debug_assert!(size.len <= at.stride || size.n <= 1, "runs do not overlap");
    let dst = SharedMut::new(dst);
    for_pieces(size, |run, piece| {
        // SAFETY: pieces of different numbers do not overlap.
        unsafe { dst.slice(at.start(run) + piece.start, piece.len()) }.fill(0.0);
    });
}

/// Calls `body(run, piece)` in parallel for pieces that cover all runs. A task has about [`CHUNK`]
/// numbers: a long run is divided into pieces, and short runs share a task.
fn for_pieces(RunSize { n, len }: RunSize, body: impl Fn(usize, Range<usize>) + Sync) {
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
        for run in task * per_task..n.min((task + 1) * per_task) {
            body(run, 0..len);
        }
    });
}
