//! Products with few rows of A, as in decoding: B is read once, without packing.
//!
//! Such a product is bound by the bandwidth of memory, and packing would read B twice.
//!
//! The additions of one number of C have the order of the register tile: one chain of fused
//! multiply-adds per pass along K, then the passes in order. So a row of A gives the same bits here
//! and among many rows. For that, a weight `[out, in]`, whose rows run along K, is transposed block
//! by block in registers; dot products would be simpler, but add in another order. The shuffles
//! take less time than memory does.

use std::ops::Range;

use super::Job;
use crate::simd::{Kernel, Simd, dispatch_on};
use crate::threads::{self, SharedMut};

/// Largest number of rows of A for these kernels.
pub(super) const ROWS_MAX: usize = 4;

/// Columns of C per task.
const CHUNK: usize = 64;
/// The largest number of lanes.
const LANES_MAX: usize = 16;
/// Distance of the prefetch along each row of B, in floats.
const AHEAD: usize = 128;

/// `C = A B` for at most [`ROWS_MAX`] row-major rows of A.
pub(super) fn multiply(job: &Job<'_>, c: &mut [f32]) {
    let c = SharedMut::new(c);
    // A task reads at least 32 Ki numbers of B; for less, waking a thread costs more than it saves.
    let chunk = CHUNK.max((1usize << 15).div_ceil(job.k)).next_multiple_of(CHUNK);
    threads::run(job.n.div_ceil(chunk), |task| {
        let columns = task * chunk..job.n.min((task + 1) * chunk);
        if job.b.row_stride == 1 {
            let part = Part { job, c, columns };
            match job.m {
                1 => dispatch_on(job.isa, Transposed::<'_, 1>(part)),
                2 => dispatch_on(job.isa, Transposed::<'_, 2>(part)),
                3 => dispatch_on(job.isa, Transposed::<'_, 3>(part)),
                _ => dispatch_on(job.isa, Transposed::<'_, ROWS_MAX>(part)),
            }
        } else {
            dispatch_on(job.isa, Sums(Part { job, c, columns }));
        }
    });
}

/// Some columns of C.
struct Part<'a> {
    job: &'a Job<'a>,
    c: SharedMut<f32>,
    columns: Range<usize>,
}

impl Part<'_> {
    /// Adds the bias and the old value to the sums of the first pass, in the order of the register
    /// tile. `n` columns from `j`.
    #[inline(always)]
    fn after_first_pass<S: Simd>(&self, s: S, sum: S::V, i: usize, j: usize, n: usize) -> S::V {
        let (job, mut value) = (self.job, sum);
        // SAFETY: (i, j) and the `n` columns from there lie within C and the bias.
        unsafe {
            if let Some(bias) = job.bias {
                value = s.add(value, s.load_n(bias[j..].as_ptr(), n));
            }
            if job.accumulate {
                value = s.add(value, s.load_n(self.c.ptr().add(i * job.c_stride + j), n));
            }
        }
        value
    }

    /// Writes `n` columns from `j` of row `i`.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, value: S::V, i: usize, j: usize, n: usize) {
        // SAFETY: they lie within C, and these columns belong to this task.
        unsafe { s.store_n(self.c.ptr().add(i * self.job.c_stride + j), value, n) };
    }
}

/// B is a transposed row-major matrix (a `[out, in]` weight): a vector holds neighbouring columns
/// of C, and each step along K is one multiply-add of each of the `M` rows.
struct Transposed<'a, const M: usize>(Part<'a>);

impl<const M: usize> Kernel for Transposed<'_, M> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.0.job;
        let pass = job.pass();
        for j in self.0.columns.clone().step_by(S::LANES) {
            let n = (self.0.columns.end - j).min(S::LANES);
            let mut total = [s.splat(0.0); M];
            for k0 in (0..job.k).step_by(pass) {
                let sums = self.sums(s, j, n, k0..job.k.min(k0 + pass));
                for i in 0..M {
                    total[i] = if k0 == 0 {
                        self.0.after_first_pass(s, sums[i], i, j, n)
                    } else {
                        s.add(sums[i], total[i])
                    };
                }
            }
            for (i, total) in total.into_iter().enumerate() {
                self.0.store(s, total, i, j, n);
            }
        }
    }
}

impl<const M: usize> Transposed<'_, M> {
    /// The sums of one pass for `n` columns from `j`.
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, j: usize, n: usize, pass: Range<usize>) -> [S::V; M] {
        let (job, lanes) = (self.0.job, S::LANES);
        let stride = job.b.col_stride;
        let b = &job.b.data[j * stride..];
        assert!(b.len() >= (n - 1) * stride + pass.end);
        let a: [&[f32]; M] =
            std::array::from_fn(|i| &job.a.data[i * job.a.row_stride..][..pass.end]);
        let mut acc = [s.splat(0.0); M];
        let mut steps = [0.0f32; LANES_MAX * LANES_MAX];
        let mut k = pass.start;
        if n == lanes {
            while k + lanes <= pass.end {
                // Past the end of the rows, the next rows follow.
                let ahead = k + AHEAD;
                let ahead = if ahead < job.k { ahead } else { lanes * stride + ahead - job.k };
                // SAFETY: `lanes` rows of `lanes` floats lie within B by the assertion.
                unsafe {
                    s.transpose(b.as_ptr().add(k), stride, steps.as_mut_ptr(), lanes);
                }
                for row in 0..lanes {
                    s.prefetch(b.as_ptr().wrapping_add(row * stride + ahead));
                }
                for step in 0..lanes {
                    // SAFETY: there are `lanes` vectors of steps, and k + step < pass.end.
                    unsafe {
                        let v = s.load(steps.as_ptr().add(step * lanes));
                        for i in 0..M {
                            let x = s.splat(*a[i].as_ptr().add(k + step));
                            acc[i] = s.fma(x, v, acc[i]);
                        }
                    }
                }
                k += lanes;
            }
        }
        let mut rows = [0.0f32; LANES_MAX * LANES_MAX];
        while k < pass.end {
            let have = (pass.end - k).min(lanes);
            // SAFETY: `have` floats of each of `n` rows lie within B by the assertion; the arrays
            // hold `lanes` vectors.
            unsafe {
                for row in 0..n {
                    let v = s.load_n(b.as_ptr().add(row * stride + k), have);
                    s.store(rows.as_mut_ptr().add(row * lanes), v);
                }
                s.transpose(rows.as_ptr(), lanes, steps.as_mut_ptr(), lanes);
                for step in 0..have {
                    let v = s.load(steps.as_ptr().add(step * lanes));
                    for i in 0..M {
                        acc[i] = s.fma(s.splat(a[i][k + step]), v, acc[i]);
                    }
                }
            }
            k += have;
        }
        acc
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
struct Sums<'a>(Part<'a>);

impl Kernel for Sums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Vectors of C kept in registers.
        const WIDE: usize = 4;
        let (job, columns) = (self.0.job, self.0.columns.clone());
        let pass = job.pass();
        for i in 0..job.m {
            let a = &job.a.data[i * job.a.row_stride..][..job.k];
            for j in columns.clone().step_by(WIDE * S::LANES) {
                let width = (columns.end - j).min(WIDE * S::LANES);
                let n = |v: usize| width.saturating_sub(v * S::LANES).min(S::LANES);
                let mut total = [s.splat(0.0); WIDE];
                for (part, a) in a.chunks(pass).enumerate() {
                    let mut acc = [s.splat(0.0); WIDE];
                    for (k, &x) in a.iter().enumerate() {
                        let row = &job.b.data[(part * pass + k) * job.b.row_stride + j..][..width];
                        let x = s.splat(x);
                        for v in 0..WIDE {
                            if n(v) == 0 {
                                continue;
                            }

                            // SAFETY: these numbers are in the row.
                            let y = unsafe { s.load_n(row.as_ptr().add(v * S::LANES), n(v)) };
                            acc[v] = s.fma(x, y, acc[v]);
                        }
                    }
                    for v in 0..WIDE {
                        if n(v) == 0 {
                            continue;
                        }

                        total[v] = if part == 0 {
                            self.0.after_first_pass(s, acc[v], i, j + v * S::LANES, n(v))
                        } else {
                            s.add(acc[v], total[v])
                        };
                    }
                }
                for v in 0..WIDE {
                    if n(v) == 0 {
                        continue;
                    }

                    self.0.store(s, total[v], i, j + v * S::LANES, n(v));
                }
            }
        }
    }
}
