//! Passes over the elements of a matrix.

use lehr_kernels::CHUNK;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads::{self, SharedMut};

use super::super::Muon;
use super::super::part::Part;

/// A factor for each row or for each column of a matrix.
pub(super) struct Factors {
    pub(super) by_row: bool,
    pub(super) values: Vec<f32>,
}

impl Factors {
    /// The factors of `len` neighbours of a row from column `col` on.
    fn of(&self, row: usize, col: usize, len: usize) -> RowFactors<'_> {
        match self.by_row {
            true => RowFactors::One(self.values[row]),
            false => RowFactors::Each(&self.values[col..col + len]),
        }
    }
}

#[derive(Clone, Copy)]
enum RowFactors<'a> {
    One(f32),
    Each(&'a [f32]),
}

/// Runs `body` for each row, in tasks of about a chunk.
fn for_rows(part: &Part, body: impl Fn(usize) + Sync) {
    let per_task = (CHUNK / part.cols).max(1);
    threads::run(part.rows.div_ceil(per_task), |task| {
        (task * per_task..part.rows.min((task + 1) * per_task)).for_each(&body);
    });
}

/// The momentum takes the gradient in; `x` is the direction of the part, a step ahead.
pub(super) fn gather(part: &Part, momentum: &mut [f32], grad: &[f32], rule: &Muon, x: &mut [f32]) {
    let (momentum, x) = (SharedMut::new(momentum), SharedMut::new(x));
    for_rows(part, |row| {
        for segment in part.segments(row) {
            let (at, len) = (segment.stored_at, segment.len);
            // SAFETY: segments do not overlap.
            let (m, x) = unsafe { (momentum.slice(at, len), x.slice(segment.at, len)) };
            dispatch(Ahead { m, grad: &grad[at..at + len], x: Some(x), rule });
        }
    });
}

/// The momentum takes the gradient of a whole matrix in.
pub(super) fn take_in(momentum: &mut [f32], grad: &[f32], rule: &Muon) {
    threads::run_chunks(momentum, CHUNK, |index, m| {
        let grad = &grad[index * CHUNK..][..m.len()];
        dispatch(Ahead { m, grad, x: None, rule });
    });
}

struct Ahead<'a> {
    m: &'a mut [f32],
    grad: &'a [f32],
    x: Option<&'a mut [f32]>,
    rule: &'a Muon,
}

impl Kernel for Ahead<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { m, grad, mut x, rule } = self;
        let (mu, rest) = (s.splat(rule.momentum), s.splat(1.0 - rule.momentum));
        let g_scale = s.splat(rule.grad_scale);
        for i in (0..m.len()).step_by(S::LANES) {
            let n = (m.len() - i).min(S::LANES);
            // SAFETY: `n` numbers from i are within the slices, which have one length.
            unsafe {
                let g = s.mul(s.load_n(grad.as_ptr().add(i), n), g_scale);
                let old = s.load_n(m.as_ptr().add(i), n);
                let new = s.fma(s.sub(g, old), rest, old);
                s.store_n(m.as_mut_ptr().add(i), new, n);
                if let Some(x) = &mut x {
                    s.store_n(x.as_mut_ptr().add(i), s.fma(s.sub(new, g), mu, g), n);
                }
            }
        }
    }
}

/// The sum of squares of each row or of each column.
pub(super) struct Squares(pub(super) Vec<f64>);

impl Squares {
    pub(super) fn of(part: &Part, x: &[f32], by_row: bool) -> Self {
        /// Columns of a task.
        const COLS: usize = 128;
        let Part { rows, cols, .. } = *part;
        let mut sums = vec![0.0f64; if by_row { rows } else { cols }];
        if by_row {
            threads::run_chunks(&mut sums, (CHUNK / cols).max(1), |index, sums| {
                let first = index * (CHUNK / cols).max(1);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = dispatch(RowSquares(&x[(first + i) * cols..][..cols]));
                }
            });
        } else {
            threads::run_chunks(&mut sums, COLS, |index, sums| {
                dispatch(ColumnSquares { x: &x[index * COLS..], rows, cols, sums });
            });
        }
        Self(sums)
    }
}

struct RowSquares<'a>(&'a [f32]);

impl Kernel for RowSquares<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // Short f32 runs summed in f64.
        let short = |run: &[f32]| f64::from(lehr_kernels::gemm::vector::dot(s, run, run));
        self.0.chunks(1024).map(short).sum()
    }
}

struct ColumnSquares<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    sums: &'a mut [f64],
}

impl Kernel for ColumnSquares<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for row in 0..self.rows {
            let row = &self.x[row * self.cols..][..self.sums.len()];
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(x * x);
            }
        }
    }
}

/// `x *= factors`.
pub(super) fn scale(part: &Part, x: &mut [f32], factors: &Factors) {
    let cols = part.cols;
    let x = SharedMut::new(x);
    for_rows(part, |row| {
        // SAFETY: rows do not overlap.
        let x = unsafe { x.slice(row * cols, cols) };
        dispatch(Scale { x, factors: factors.of(row, 0, cols) });
    });
}

struct Scale<'a> {
    x: &'a mut [f32],
    factors: RowFactors<'a>,
}

impl Kernel for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.factors {
            RowFactors::One(factor) => self.x.iter_mut().for_each(|x| *x *= factor),
            RowFactors::Each(factors) => {
                self.x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
            }
        }
    }
}

/// Moves the weights of the part by `x * factors`; `rule.lr` is the part's own.
pub(super) fn apply(part: &Part, value: &mut [f32], x: &[f32], factors: &Factors, rule: Muon) {
    let value = SharedMut::new(value);
    for_rows(part, |row| {
        for segment in part.segments(row) {
            // SAFETY: segments do not overlap.
            let p = unsafe { value.slice(segment.stored_at, segment.len) };
            let x = &x[segment.at..][..segment.len];
            let col = segment.at - row * part.cols;
            dispatch(Apply { p, x, factors: factors.of(row, col, segment.len), rule: &rule });
        }
    });
}

struct Apply<'a> {
    p: &'a mut [f32],
    x: &'a [f32],
    factors: RowFactors<'a>,
    rule: &'a Muon,
}

impl Kernel for Apply<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { p, x, factors, rule } = self;
        let zero = s.splat(0.0);
        let minus_lr = s.splat(-rule.lr);
        let shrunk = s.splat(1.0 - rule.lr * rule.weight_decay);
        // What a weight is multiplied by whose update does not move it towards 0.
        let other = if rule.cautious { s.splat(1.0) } else { shrunk };
        for i in (0..p.len()).step_by(S::LANES) {
            let n = (p.len() - i).min(S::LANES);
            // SAFETY: `n` numbers from i are within the slices, which have one length.
            unsafe {
                let factor = match factors {
                    RowFactors::One(factor) => s.splat(factor),
                    RowFactors::Each(each) => s.load_n(each.as_ptr().add(i), n),
                };
                let step = s.mul(s.load_n(x.as_ptr().add(i), n), factor);
                let old = s.load_n(p.as_ptr().add(i), n);
                let keep = s.select_gt(zero, s.mul(step, old), other, shrunk);
                let new = s.fma(minus_lr, step, s.mul(old, keep));
                s.store_n(p.as_mut_ptr().add(i), new, n);
            }
        }
    }
}
