//! The products of one tile of 64 queries and 64 keys.
//!
//! | function | product | used for |
//! |---|---|---|
//! | [`scores`] | `C = Aᵀ B` | `S = Q Kᵀ` and `dP = dO Vᵀ`, from operands `[E][64]` |
//! | [`weighted`] | `C += A B` | `O += P V` and `dQ += dS K` |
//! | [`gathered`] | `C += A B` | `dVᵀ += dOᵀ P` and `dKᵀ += Qᵀ dS` |
//!
//! Each consists of loops around one register tile, which reads whole vectors of B and single
//! numbers of A, as in a matrix product. The operands are stored so that this is possible without a
//! transposition between the products. All tiles are [`BLOCK`] wide or padded to a multiple of 16,
//! so no product has edges. The difference between them is what they leave out under a mask.

use lehr_kernels::simd::Simd;

use super::{BLOCK, Problem, QueryBlock};

/// Rows that are multiplied together: a multiple of the height of every register tile.
pub(super) const ROWS: usize = 8;
/// Groups of rows per block.
const N_ROWS: usize = BLOCK / ROWS;

/// The keys of one block of keys that each query of a block sees.
pub(super) struct Spans {
    /// First column and one past the last, per row; equal for rows that see nothing.
    pub(super) rows: [(usize, usize); BLOCK],
    /// The union over [`ROWS`] rows each; `(0, 0)` if none sees anything.
    groups: [(usize, usize); N_ROWS],
}

impl Spans {
    pub(super) fn new(problem: &Problem<'_>, block: &QueryBlock, key: usize) -> Self {
        const ALL: (usize, usize) = (0, BLOCK);
        if block.full.0 <= key && key + BLOCK <= block.full.1 {
            return Self { rows: [ALL; BLOCK], groups: [ALL; N_ROWS] };
        }
        let mut spans = Self { rows: [(0, 0); BLOCK], groups: [(0, 0); N_ROWS] };
        for (r, bounds) in block.intervals(problem).chunks_exact(2).enumerate() {
            let [lo, hi] =
                [bounds[0], bounds[1]].map(|x| (x as usize).clamp(key, key + BLOCK) - key);
            if lo >= hi {
                continue;
            }
            spans.rows[r] = (lo, hi);
            let group = &mut spans.groups[r / ROWS];
            *group = if group.1 == 0 { (lo, hi) } else { (group.0.min(lo), group.1.max(hi)) };
        }
        spans
    }

    /// The rows that see some of the columns `from..to`, as a range of whole groups.
    fn rows_seeing(&self, from: usize, to: usize) -> (usize, usize) {
        let mut rows = (0, 0);
        for (g, (lo, hi)) in self.groups.iter().enumerate() {
            if *lo < to && from < *hi {
                rows = (if rows.1 == 0 { g * ROWS } else { rows.0 }, (g + 1) * ROWS);
            }
        }
        rows
    }
}

/// Computes `C[i, j] = Σₖ A[k, i] B[k, j]` within the spans, over `k < n_steps`: scores from
/// transposed queries and keys. A, B `[n_steps][BLOCK]`, C `[BLOCK][BLOCK]`. Columns are computed
/// in whole register tiles; columns that no row of a group sees keep their old contents.
#[inline(always)]
pub(super) fn scores<S: Simd>(
    s: S,
    spans: &Spans,
    n_steps: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
) {
    assert!(a.len() >= n_steps * BLOCK && b.len() >= n_steps * BLOCK && c.len() >= BLOCK * BLOCK);
    let wide = 2 * S::LANES;
    for j in (0..BLOCK).step_by(wide) {
        for (g, (lo, hi)) in spans.groups.iter().enumerate() {
            if *lo >= j + wide || j >= *hi {
                continue;
            }
            let i = g * ROWS;
            // SAFETY: rows i to i + ROWS and columns j to j + wide lie within the tiles.
            unsafe {
                let (a, b) = (a.as_ptr().add(i), b.as_ptr().add(j));
                let c = c.as_mut_ptr().add(i * BLOCK + j);
                rows::<S, 2, 1, BLOCK, false>(s, n_steps, a, b, BLOCK, c, BLOCK);
            }
        }
    }
}

/// Computes `C[i, e] += Σⱼ A[i, j] B[j, e]` over the columns j that the group of row i sees:
/// weighted sums of values or keys. A `[BLOCK][BLOCK]`, 0 where masked; B and C `[BLOCK][padded]`.
#[inline(always)]
pub(super) fn weighted<S: Simd>(s: S, spans: &Spans, a: &[f32], b: &[f32], c: &mut [f32]) {
    let padded = b.len() / BLOCK;
    assert!(a.len() >= BLOCK * BLOCK && c.len() == b.len() && padded.is_multiple_of(16));
    let wide = 2 * S::LANES;
    for j in (0..padded).step_by(wide) {
        for (g, &(lo, hi)) in spans.groups.iter().enumerate() {
            if lo >= hi {
                continue;
            }
            let i = g * ROWS;
            // SAFETY: rows i to i + ROWS, steps lo to hi and columns from j, whole vectors since
            // `padded` is a multiple of 16, lie within the tiles.
            unsafe {
                let (a, b) = (a.as_ptr().add(i * BLOCK + lo), b.as_ptr().add(lo * padded + j));
                let c = c.as_mut_ptr().add(i * padded + j);
                if j + wide <= padded {
                    rows::<S, 2, BLOCK, 1, true>(s, hi - lo, a, b, padded, c, padded);
                } else {
                    rows::<S, 1, BLOCK, 1, true>(s, hi - lo, a, b, padded, c, padded);
                }
            }
        }
    }
}

/// Computes `C[e, j] += Σᵢ A[e, i] B[i, j]` over the rows i that see column j: the transposed
/// gradients of keys and values. A and C `[padded][BLOCK]`, B `[BLOCK][BLOCK]`, 0 where masked.
#[inline(always)]
pub(super) fn gathered<S: Simd>(s: S, spans: &Spans, a: &[f32], b: &[f32], c: &mut [f32]) {
    assert!(b.len() >= BLOCK * BLOCK && a.len() == c.len() && a.len().is_multiple_of(16 * BLOCK));
    let wide = 2 * S::LANES;
    for j in (0..BLOCK).step_by(wide) {
        let (from, to) = spans.rows_seeing(j, j + wide);
        if from >= to {
            continue;
        }
        for i in (0..a.len() / BLOCK).step_by(ROWS) {
            // SAFETY: rows i to i + ROWS, steps from..to and columns j to j + wide lie within the
            // tiles.
            unsafe {
                let (a, b) = (a.as_ptr().add(i * BLOCK + from), b.as_ptr().add(from * BLOCK + j));
                let c = c.as_mut_ptr().add(i * BLOCK + j);
                rows::<S, 2, BLOCK, 1, true>(s, to - from, a, b, BLOCK, c, BLOCK);
            }
        }
    }
}

/// Computes [`ROWS`] rows times `NV` vectors with the register tile of the instruction set.
///
/// # Safety
/// As [`register_tile`] for `ROWS` rows.
#[inline(always)]
unsafe fn rows<
    S: Simd,
    const NV: usize,
    const A_ROW: usize,
    const A_STEP: usize,
    const ADD: bool,
>(
    s: S,
    n_steps: usize,
    a: *const f32,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        // 32 registers hold eight rows, 16 hold four.
        if S::LANES == 16 || cfg!(target_arch = "aarch64") {
            register_tile::<S, 8, NV, A_ROW, A_STEP, ADD>(s, n_steps, a, b, b_stride, c, c_stride);
        } else {
            for i in (0..ROWS).step_by(4) {
                let (a, c) = (a.add(i * A_ROW), c.add(i * c_stride));
                register_tile::<S, 4, NV, A_ROW, A_STEP, ADD>(
                    s, n_steps, a, b, b_stride, c, c_stride,
                );
            }
        }
    }
}

/// Computes `MR × NV` vectors of C in registers over `n_steps` steps. The strides of A are
/// constants and become address offsets.
///
/// # Safety
/// For each step, `MR` floats of A (`A_ROW` apart) and `NV` vectors of B are readable; `MR` rows
/// of `NV` vectors of C are writable.
#[inline(always)]
unsafe fn register_tile<
    S: Simd,
    const MR: usize,
    const NV: usize,
    const A_ROW: usize,
    const A_STEP: usize,
    const ADD: bool,
>(
    s: S,
    n_steps: usize,
    mut a: *const f32,
    mut b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
) {
    let mut acc = [[s.splat(0.0); NV]; MR];
    for _ in 0..n_steps {
        let mut bv = [s.splat(0.0); NV];
        for v in 0..NV {
            // SAFETY: promised by the caller.
            bv[v] = unsafe { s.load(b.add(v * S::LANES)) };
        }
        for i in 0..MR {
            // SAFETY: promised by the caller.
            let av = s.splat(unsafe { *a.add(i * A_ROW) });
            for v in 0..NV {
                acc[i][v] = s.fma(av, bv[v], acc[i][v]);
            }
        }
        a = a.wrapping_add(A_STEP);
        b = b.wrapping_add(b_stride);
    }
    for i in 0..MR {
        for v in 0..NV {
            // SAFETY: promised by the caller.
            unsafe {
                let at = c.add(i * c_stride + v * S::LANES);
                let value = if ADD { s.add(s.load(at), acc[i][v]) } else { acc[i][v] };
                s.store(at, value);
            }
        }
    }
}

/// Lane numbers 0.5, 1.5, … of a whole row: column j is in `[lo, hi)` if `lo < j + 0.5 < hi`. The
/// halves turn `lo ≤ j` into a comparison by `>`, the only one of [`Simd`].
pub(super) struct Columns([f32; BLOCK]);

impl Columns {
    pub(super) fn new() -> Self {
        let mut columns = [0.5; BLOCK];
        for (j, c) in columns.iter_mut().enumerate() {
            *c += j as f32;
        }
        Self(columns)
    }

    /// Returns `x` in the lanes of `[lo, hi)` and `other` elsewhere, for the vector from column j.
    #[inline(always)]
    pub(super) fn select<S: Simd>(
        &self,
        s: S,
        j: usize,
        (lo, hi): (usize, usize),
        x: S::V,
        other: S::V,
    ) -> S::V {
        if lo <= j && j + S::LANES <= hi {
            return x;
        }
        assert!(j + S::LANES <= BLOCK);
        // SAFETY: in bounds by the assertion.
        let column = unsafe { s.load(self.0.as_ptr().add(j)) };
        let below = s.select_gt(s.splat(hi as f32), column, x, other);
        s.select_gt(column, s.splat(lo as f32), below, other)
    }
}
