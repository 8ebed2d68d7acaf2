//! Products with few rows of A, as in decoding: B is read once, straight from where it lies.
//!
//! Such a product is bound by the bandwidth of memory: packing would read B twice.

use super::Job;
use crate::simd::{Kernel, Simd, dispatch_on};
use crate::threads::{self, SharedMut};

/// The largest number of rows of A taken here.
pub(super) const ROWS_MAX: usize = 4;

/// Columns of C per task.
const CHUNK: usize = 64;

/// `C = A B` for at most [`ROWS_MAX`] row-major rows of A.
pub(super) fn multiply(job: &Job<'_>, c: &mut [f32]) {
    let c = SharedMut::new(c);
    // Tasks take at least 32 Ki numbers of B, or else waking a thread costs more than it saves.
    let chunk = CHUNK.max((1usize << 15).div_ceil(job.k)).next_multiple_of(CHUNK);
    threads::run(job.n.div_ceil(chunk), |task| {
        let columns = task * chunk..job.n.min((task + 1) * chunk);
        if job.b.row_stride == 1 {
            dispatch_on(job.isa, Dots { job, c, columns });
        } else {
            dispatch_on(job.isa, Sums { job, c, columns });
        }
    });
}

/// Adds bias and old value, and stores one number of C.
#[inline(always)]
fn finish(job: &Job<'_>, c: SharedMut<f32>, i: usize, j: usize, sum: f32) {
    let bias = job.bias.map_or(0.0, |bias| bias[j]);
    // SAFETY: (i, j) lies within C, and column j belongs to this task.
    unsafe {
        let c = c.ptr().add(i * job.c_stride + j);
        *c = if job.accumulate { *c + sum + bias } else { sum + bias };
    }
}

/// B is a transposed row-major matrix (a `[out, in]` weight): dot products along K.
struct Dots<'a> {
    job: &'a Job<'a>,
    c: SharedMut<f32>,
    columns: std::ops::Range<usize>,
}

impl Kernel for Dots<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        for j in self.columns {
            let b = &job.b.data[j * job.b.col_stride..][..job.k];
            for i in 0..job.m {
                let a = &job.a.data[i * job.a.row_stride..][..job.k];
                finish(job, self.c, i, j, dot(s, a, b));
            }
        }
    }
}

/// The dot product of two slices of one length, in four chains of additions.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let n = a.len();
    let mut acc = [s.splat(0.0); 4];
    let mut k = 0;
    while k + 4 * S::LANES <= n {
        for v in 0..4 {
            // SAFETY: k + 4 * LANES <= n.
            unsafe {
                let x = s.load(a.as_ptr().add(k + v * S::LANES));
                let y = s.load(b.as_ptr().add(k + v * S::LANES));
                acc[v] = s.fma(x, y, acc[v]);
            }
        }
        k += 4 * S::LANES;
    }
    while k < n {
        let have = (n - k).min(S::LANES);
        // SAFETY: k + have <= n.
        unsafe {
            let (x, y) = (s.load_n(a.as_ptr().add(k), have), s.load_n(b.as_ptr().add(k), have));
            acc[0] = s.fma(x, y, acc[0]);
        }
        k += have;
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

/// B is row-major (an `[in, out]` weight): rows of B are scaled and summed.
struct Sums<'a> {
    job: &'a Job<'a>,
    c: SharedMut<f32>,
    columns: std::ops::Range<usize>,
}

impl Kernel for Sums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Vectors of C kept in registers.
        const WIDE: usize = 4;
        let job = self.job;
        for i in 0..job.m {
            let a = &job.a.data[i * job.a.row_stride..][..job.k];
            let mut j = self.columns.start;
            while j < self.columns.end {
                let width = (self.columns.end - j).min(WIDE * S::LANES);
                let mut acc = [s.splat(0.0); WIDE];
                for (k, &x) in a.iter().enumerate() {
                    let row = &job.b.data[k * job.b.row_stride + j..][..width];
                    let x = s.splat(x);
                    for v in 0..WIDE {
                        let n = width.saturating_sub(v * S::LANES).min(S::LANES);
                        if n > 0 {
                            // SAFETY: `n` numbers from v * LANES are in the row.
                            let y = unsafe { s.load_n(row.as_ptr().add(v * S::LANES), n) };
                            acc[v] = s.fma(x, y, acc[v]);
                        }
                    }
                }
                let mut sums = [0.0f32; WIDE * 16];
                for v in 0..WIDE {
                    // SAFETY: room for `WIDE` vectors of at most 16 lanes.
                    unsafe { s.store(sums.as_mut_ptr().add(v * S::LANES), acc[v]) };
                }
                for (w, sum) in sums[..width].iter().enumerate() {
                    finish(job, self.c, i, j + w, *sum);
                }
                j += width;
            }
        }
    }
}
