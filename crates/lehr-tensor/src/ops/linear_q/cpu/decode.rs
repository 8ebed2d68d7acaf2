//! Few rows of activations: every row of weights is read once, from where it lies, and multiplied
//! in integers. Bound by the bandwidth of memory.

use std::ops::Range;

use super::activations::{Quad, Rounded};
use super::stored::Stored;
use crate::Result;
use crate::cpu::simd::bytes::{Bytes, BytesKernel, dispatch_bytes};
use crate::cpu::threads::{self, SharedMut};
use crate::quant::QMatrix;

/// How many bytes ahead weights are asked for. The processor's own prefetching stops at the end of
/// a page; with this a core reads twice as fast.
pub(super) const AHEAD: usize = 4096;

/// Rows of weights per task: enough work to be worth waking a thread, and otherwise two tasks for
/// each, because memory is read fastest in long runs. An output is the work of one task, so the cut
/// changes no bit.
fn rows_per_task(rows: usize, cols: usize) -> usize {
    let least = (1usize << 15).div_ceil(cols.max(1)).max(16);
    least.max(rows.div_ceil(2 * threads::n_threads()))
}

/// Calls `body(rows of weights, first row of x, number of rows of x)` in parallel for all of both;
/// the number is 1, 2 or 4. Weights that meet several groups of rows stay in a cache meanwhile.
pub(super) fn split(w: &QMatrix, n_x: usize, body: impl Fn(Range<usize>, usize, usize) + Sync) {
    /// Bytes of weights that stay in a first-level cache beside activations.
    const STAY: usize = 1 << 14;
    let chunk = rows_per_task(w.rows(), w.cols());
    let block = if n_x <= 4 { chunk } else { (STAY / w.row_bytes().max(1)).clamp(4, chunk) };
    threads::run(w.rows().div_ceil(chunk), |task| {
        let end = w.rows().min((task + 1) * chunk);
        for start in (task * chunk..end).step_by(block) {
            let mut first = 0;
            while first < n_x {
                let count = match n_x - first {
                    1 => 1,
                    2 | 3 => 2,
                    _ => 4,
                };
                body(start..end.min(start + block), first, count);
                first += count;
            }
        }
    });
}

/// `y = x Wᵀ + bias` for any number of rows of `x`.
pub(super) fn multiply<W: Stored>(
    format: W,
    w: &QMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let x = Rounded::new(x, w.cols())?;
    let n_x = x.quads().len() / x.n_quads;
    let y = SharedMut::new(y);
    split(w, n_x, |rows, first, count| {
        let job = Job { w, x: x.quads(), n_quads: x.n_quads, bias, y, first, rows };
        match count {
            1 => dispatch_bytes(Rows::<W, 1> { format, job }),
            2 => dispatch_bytes(Rows::<W, 2> { format, job }),
            _ => dispatch_bytes(Rows::<W, 4> { format, job }),
        }
    });
    Ok(())
}

struct Job<'a> {
    w: &'a QMatrix,
    x: &'a [Quad],
    n_quads: usize,
    bias: Option<&'a [f32]>,
    y: SharedMut<f32>,
    /// The first row of activations.
    first: usize,
    /// Rows of weights.
    rows: Range<usize>,
}

/// `M` rows of activations times some rows of weights.
struct Rows<'a, W, const M: usize> {
    format: W,
    job: Job<'a>,
}

impl<W: Stored, const M: usize> BytesKernel for Rows<'_, W, M> {
    type Out = ();

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) {
        let Self { format, job } = self;
        let (bytes, row_bytes) = (job.w.bytes(), job.w.row_bytes());
        let row_scales = job.w.format().row_scales(job.w.cols());
        let needed = format.bytes_read(job.n_quads);
        let groups_last = job.w.cols().div_ceil(32) - 4 * (job.n_quads - 1);
        let mut padded = Vec::new();
        for r in job.rows.clone() {
            let mut row = &bytes[r * row_bytes..];
            if row.len() < needed {
                // The last rows of a matrix whose rows are not whole quads.
                padded.clear();
                padded.extend_from_slice(&row[..row_bytes]);
                padded.resize(needed, 0);
                row = &padded;
            }
            let scales = job.w.scales()[r * row_scales..].as_ptr();
            let mut sums = Sums::<S, M> { lanes: [s.zero(); M], offsets: [s.q([0.0; 4]); M] };
            let x = &job.x[job.first * job.n_quads..][..M * job.n_quads];
            for quad in 0..job.n_quads - 1 {
                // SAFETY: the row has the bytes and scales of all its groups.
                unsafe { sums.add(s, format, row.as_ptr(), scales, x, job.n_quads, quad, 4) };
            }
            // SAFETY: as above.
            unsafe {
                let last = job.n_quads - 1;
                sums.add(s, format, row.as_ptr(), scales, x, job.n_quads, last, groups_last);
            }
            let bias = job.bias.map_or(0.0, |bias| bias[r]);
            for i in 0..M {
                // SAFETY: row `first + i` and column r lie within y; no other task has column r.
                let y = unsafe { &mut *job.y.ptr().add((job.first + i) * job.w.rows() + r) };
                *y = sums.total(s, i) + bias;
            }
        }
    }
}

/// Partial sums of one row of weights with `M` rows of activations.
struct Sums<S: Bytes, const M: usize> {
    lanes: [S::F; M],
    offsets: [S::Q; M],
}

impl<S: Bytes, const M: usize> Sums<S, M> {
    /// Adds the products of quad `quad`.
    ///
    /// # Safety
    /// As for [`Stored::quad`].
    #[inline(always)]
    unsafe fn add<W: Stored>(
        &mut self,
        s: S,
        format: W,
        row: *const u8,
        scales: *const f32,
        x: &[Quad],
        n_quads: usize,
        quad: usize,
        n: usize,
    ) {
        // SAFETY: promised by the caller.
        let terms = unsafe { format.quad(s, row, scales, quad, n) };
        let quad_bytes = format.bytes_read(n_quads) / n_quads;
        let ahead = row.wrapping_add(quad * quad_bytes + AHEAD);
        s.prefetch(ahead);
        if quad_bytes > 64 {
            s.prefetch(ahead.wrapping_add(64));
        }
        let dot = |acc, w, x| if W::SIGNED { s.dot_signed(acc, w, x) } else { s.dot(acc, w, x) };
        for i in 0..M {
            let x = &x[i * n_quads + quad];
            // SAFETY: the arrays of a quad are as long as the vectors.
            let (first, second, scale) = unsafe {
                (
                    s.load(x.first.as_ptr().cast()),
                    s.load(x.second.as_ptr().cast()),
                    s.q_load(x.scale.as_ptr()),
                )
            };
            let mut lanes = self.lanes[i];
            let products = dot(s.zero_i(), terms.first, first);
            if W::HALVES {
                let with = s.spread(s.q_mul(terms.scale, scale));
                lanes = s.fma(s.to_f32(products), with, lanes);
                let products = dot(s.zero_i(), terms.second, second);
                let with = s.spread(s.q_mul(terms.scale_second, scale));
                self.lanes[i] = s.fma(s.to_f32(products), with, lanes);
            } else {
                let products = dot(products, terms.second, second);
                let with = s.spread(s.q_mul(terms.scale, scale));
                self.lanes[i] = s.fma(s.to_f32(products), with, lanes);
            }
            // SAFETY: as above.
            let sum = |sum: &[f32; 4]| unsafe { s.q_load(sum.as_ptr()) };
            if W::OFFSET && W::HALVES {
                let offsets = s.q_fma(terms.offset, sum(&x.sum_first), self.offsets[i]);
                self.offsets[i] = s.q_fma(terms.offset_second, sum(&x.sum_second), offsets);
            } else if W::OFFSET {
                self.offsets[i] = s.q_fma(terms.offset, sum(&x.sum), self.offsets[i]);
            }
        }
    }

    #[inline(always)]
    fn total(&self, s: S, i: usize) -> f32 {
        let q = s.q_array(self.offsets[i]);
        s.sum(self.lanes[i]) + ((q[0] + q[2]) + (q[1] + q[3]))
    }
}
