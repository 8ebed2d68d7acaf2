//! Few rows of activations: every row of weights is read once, from where it lies, and multiplied
//! in integers. Bound by the bandwidth of memory.
//!
//! The order of additions is that of [`tiles`](super::tiles), so that a row of activations gives
//! the same bits alone and among many. Integers come first: the sum over a group of 32 (or 16)
//! numbers is exact in any order. Then each of the four groups of a quad has a sum of floats of its
//! own along the row, and in the end `(0 + 2) + (1 + 3)`, and the bias.

use std::ops::Range;

use lehr_kernels::simd::bytes::{Bytes, BytesKernel, dispatch_bytes};
use lehr_kernels::threads::{self, SharedMut};

use super::activations::{Quad, Rounded};
use super::stored::{Stored, Terms};
use crate::Result;
use crate::quant::QMatrix;

/// How many bytes of weights ahead of all rows in hand are asked for. The processor's own
/// prefetching stops at the end of a page; with this a core reads twice as fast.
const AHEAD: usize = 4096;
/// Rows of weights multiplied at a time: their sums of integers are added up together.
const ROWS: usize = 4;
/// Rows of weights per task are a multiple of this.
const TASK: usize = 16;

/// Rows of weights per task: enough work to be worth waking a thread, and otherwise two tasks for
/// each, because memory is read fastest in long runs. An output is the work of one task, so the cut
/// changes no bit.
fn rows_per_task(rows: usize, cols: usize) -> usize {
    let least = (1usize << 15).div_ceil(cols.max(1));
    least.max(rows.div_ceil(2 * threads::n_threads())).next_multiple_of(TASK)
}

/// Calls `body(rows of weights, first row of x, number of rows of x)` in parallel for all of both;
/// the number is a power of two up to `most`. Weights that meet several groups of rows stay in a
/// cache meanwhile. Ranges of weights begin at multiples of `unit`, which divides 16.
pub(super) fn split(
    w: &QMatrix,
    n_x: usize,
    most: usize,
    unit: usize,
    body: impl Fn(Range<usize>, usize, usize) + Sync,
) {
    /// Bytes of weights that stay in a first-level cache beside activations.
    const STAY: usize = 1 << 14;
    let chunk = rows_per_task(w.rows(), w.cols());
    let stay = (STAY / w.row_bytes().max(1)).clamp(4, chunk).next_multiple_of(unit);
    let block = if n_x <= most { chunk } else { stay };
    threads::run(w.rows().div_ceil(chunk), |task| {
        let end = w.rows().min((task + 1) * chunk);
        for start in (task * chunk..end).step_by(block) {
            let mut first = 0;
            while first < n_x {
                let count = 1 << (n_x - first).min(most).ilog2();
                body(start..end.min(start + block), first, count);
                first += count;
            }
        }
    });
}

/// Where to ask for weights when `at` bytes of each of `n` rows have been read: [`AHEAD`] bytes
/// further, counting all rows, or in the rows that follow.
#[inline(always)]
pub(super) fn ahead(row: *const u8, at: usize, row_bytes: usize, n: usize) -> *const u8 {
    let next = at + AHEAD / n;
    row.wrapping_add(if next < row_bytes { next } else { next + (n - 1) * row_bytes })
}

/// `N` rows of weights from one on; the last of a range stands in for those behind it.
pub(super) struct WeightRows<const N: usize> {
    pub(super) codes: [*const u8; N],
    /// Scales that lie apart.
    pub(super) scales: [*const f32; N],
    /// Copies of rows at the end of a matrix whose rows are not whole quads, padded with zeros.
    _padded: Vec<Vec<u8>>,
}

impl<const N: usize> WeightRows<N> {
    /// Rows `rows`, at least one and at most `N`; `needed` bytes are read from each.
    #[inline(always)]
    pub(super) fn new(w: &QMatrix, rows: Range<usize>, needed: usize) -> Self {
        let (bytes, row_bytes) = (w.bytes(), w.row_bytes());
        let row_scales = w.format().row_scales(w.cols());
        let mut padded: Vec<Vec<u8>> = Vec::new();
        let (mut codes, mut scales) = ([std::ptr::null(); N], [std::ptr::null(); N]);
        for i in 0..N {
            let r = (rows.start + i).min(rows.end - 1);
            let row = &bytes[r * row_bytes..];
            codes[i] = row.as_ptr();
            scales[i] = w.scales()[r * row_scales..].as_ptr();
            if row.len() < needed {
                let mut copy = row[..row_bytes].to_vec();
                copy.resize(needed, 0);
                codes[i] = copy.as_ptr();
                padded.push(copy);
            }
        }
        Self { codes, scales, _padded: padded }
    }
}

/// `y = x Wᵀ + bias` for any number of rows of `x`.
pub(super) fn multiply<W: Stored>(
    format: W,
    w: &QMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let x = Rounded::new(x, w.cols(), W::SIGNED)?;
    let n_x = x.quads().len() / x.n_quads;
    let y = SharedMut::new(y);
    split(w, n_x, 4, ROWS, |rows, first, count| {
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
        let needed = format.bytes_read(job.n_quads);
        let x = &job.x[job.first * job.n_quads..][..M * job.n_quads];
        let part = Products {
            format,
            x,
            n_quads: job.n_quads,
            quad_bytes: needed / job.n_quads,
            row_bytes: job.w.row_bytes(),
        };
        let last = job.n_quads - 1;
        let groups_last = job.w.cols().div_ceil(32) - 4 * last;
        for r in job.rows.clone().step_by(ROWS) {
            let end = job.rows.end.min(r + ROWS);
            let rows = WeightRows::<ROWS>::new(job.w, r..end, needed);
            let mut sums = [s.zero(); M];
            for quad in 0..last {
                // SAFETY: the rows have the bytes and scales of all their groups.
                unsafe { part.add::<S, M>(s, &rows, quad, 4, &mut sums) };
            }
            // SAFETY: as above.
            unsafe { part.add::<S, M>(s, &rows, last, groups_last, &mut sums) };
            for (i, sums) in sums.into_iter().enumerate() {
                let totals = s.q_array(s.sum_runs(sums));
                for (r, total) in (r..end).zip(totals) {
                    let bias = job.bias.map_or(0.0, |bias| bias[r]);
                    // SAFETY: row `first + i` and column r lie within y; no other task has column
                    // r.
                    unsafe {
                        *job.y.ptr().add((job.first + i) * job.w.rows() + r) = total + bias;
                    }
                }
            }
        }
    }
}

/// What the products of [`ROWS`] rows of weights with some rows of activations are made of.
struct Products<'a, W> {
    format: W,
    x: &'a [Quad],
    n_quads: usize,
    /// Bytes of weights in a quad, and in a row.
    quad_bytes: usize,
    row_bytes: usize,
}

impl<W: Stored> Products<'_, W> {
    /// Adds the products of quad `quad`, where `n` groups are part of the rows: lane `4 g + r` of
    /// `sums[i]` is for group `g`, row `r` of the weights and row `i` of the activations.
    ///
    /// # Safety
    /// As for [`Stored::quad`].
    #[inline(always)]
    unsafe fn add<S: Bytes, const M: usize>(
        &self,
        s: S,
        rows: &WeightRows<ROWS>,
        quad: usize,
        n: usize,
        sums: &mut [S::F; M],
    ) {
        for row in rows.codes {
            for line in (0..self.quad_bytes).step_by(64) {
                s.prefetch(ahead(row, quad * self.quad_bytes + line, self.row_bytes, ROWS));
            }
        }
        // SAFETY: promised by the caller.
        let [a, b, c, d] = unsafe {
            [
                self.terms(s, rows, 0, quad, n),
                self.terms(s, rows, 1, quad, n),
                self.terms(s, rows, 2, quad, n),
                self.terms(s, rows, 3, quad, n),
            ]
        };
        let scale = s.spread_rows([a.scale, b.scale, c.scale, d.scale]);
        let offset = s.spread_rows([a.offset, b.offset, c.offset, d.offset]);
        let scale_second =
            s.spread_rows([a.scale_second, b.scale_second, c.scale_second, d.scale_second]);
        let offset_second =
            s.spread_rows([a.offset_second, b.offset_second, c.offset_second, d.offset_second]);
        for i in 0..M {
            let x = &self.x[i * self.n_quads + quad];
            // SAFETY: the arrays of a quad are as long as the vectors.
            let (first, second) =
                unsafe { (s.load(x.first.as_ptr().cast()), s.load(x.second.as_ptr().cast())) };
            let zero = s.zero_i();
            let firsts = [
                dot::<S, W>(s, zero, a.first, first),
                dot::<S, W>(s, zero, b.first, first),
                dot::<S, W>(s, zero, c.first, first),
                dot::<S, W>(s, zero, d.first, first),
            ];
            // Halves of groups begin anew, whole groups continue.
            let begin = if W::HALVES { [zero; ROWS] } else { firsts };
            let seconds = [
                dot::<S, W>(s, begin[0], a.second, second),
                dot::<S, W>(s, begin[1], b.second, second),
                dot::<S, W>(s, begin[2], c.second, second),
                dot::<S, W>(s, begin[3], d.second, second),
            ];
            let x_scale = spread(s, &x.scale);
            let mut sum = sums[i];
            if W::HALVES {
                let products = s.to_f32(s.sum_groups(firsts));
                sum = s.fma(products, s.mul(scale, x_scale), sum);
                if W::OFFSET {
                    sum = s.fma(offset, spread(s, &x.sum_first), sum);
                }
                let products = s.to_f32(s.sum_groups(seconds));
                sum = s.fma(products, s.mul(scale_second, x_scale), sum);
                if W::OFFSET {
                    sum = s.fma(offset_second, spread(s, &x.sum_second), sum);
                }
            } else {
                let mut products = s.to_f32(s.sum_groups(seconds));
                if W::SIGNED && S::WIDE {
                    products = s.add(products, spread(s, &x.sum));
                }
                sum = s.fma(products, s.mul(scale, x_scale), sum);
                if W::OFFSET {
                    sum = s.fma(offset, spread(s, &x.sum), sum);
                }
            }
            sums[i] = sum;
        }
    }

    /// A quad of one of the rows.
    ///
    /// # Safety
    /// As for [`Stored::quad`].
    #[inline(always)]
    unsafe fn terms<S: Bytes>(
        &self,
        s: S,
        rows: &WeightRows<ROWS>,
        row: usize,
        quad: usize,
        n: usize,
    ) -> Terms<S> {
        // SAFETY: promised by the caller.
        let mut terms = unsafe { self.format.quad(s, rows.codes[row], rows.scales[row], quad, n) };
        if W::SIGNED && S::WIDE {
            // Codes plus 128 have no sign.
            terms.first = s.xor(terms.first, s.splat(0x80));
            terms.second = s.xor(terms.second, s.splat(0x80));
        }
        terms
    }
}

/// Adds products of codes of weights, as [`Products::terms`] gives them, and of activations.
#[inline(always)]
fn dot<S: Bytes, W: Stored>(s: S, acc: S::I, w: S::B, x: S::B) -> S::I {
    if W::SIGNED && !S::WIDE { s.dot_signed(acc, w, x) } else { s.dot(acc, w, x) }
}

/// Each of four numbers for the four rows of its group.
#[inline(always)]
fn spread<S: Bytes>(s: S, of: &[f32; 4]) -> S::F {
    // SAFETY: there are four.
    s.spread(unsafe { s.q_load(of.as_ptr()) })
}
