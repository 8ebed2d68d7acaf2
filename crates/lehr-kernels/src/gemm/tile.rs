//! The register tile: the innermost loop, which does all multiplications.
//!
//! Step k adds the outer product of a column of A and a row of B to `MR × NV` vectors of C:
//!
//! ```text
//!                    b[k]: NV vectors
//! a[k]: MR numbers   C[i][v] += a[k][i] · b[k][v]
//! ```
//!
//! A fused multiply-add takes about four cycles, and two start per cycle, so at least eight
//! independent sums are needed to keep the units busy. More sums mean fewer loads per multiply-add.
//! The tile therefore takes as many registers as there are: 14 × 2 of 32 with AVX-512, 6 × 2 of 16
//! with AVX2, 8 × 3 of 32 with NEON; the rest hold `b[k]` and one number of `a[k]`.

use std::ops::Range;

use super::{A_PITCH, CacheBlock, Job};
use crate::simd::{Kernel, Simd};
use crate::threads::SharedMut;

/// All register tiles of a range of A panels times a range of B panels.
pub(super) struct Tiles<'a, const MR: usize, const NV: usize> {
    pub(super) job: &'a Job<'a>,
    pub(super) block: &'a CacheBlock,
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) c: SharedMut<f32>,
    pub(super) a_panels: Range<usize>,
    pub(super) b_panels: Range<usize>,
}

impl<const MR: usize, const NV: usize> Kernel for Tiles<'_, MR, NV> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (job, block) = (self.job, self.block);
        let nr = NV * S::LANES;
        let by_rows = job.a.col_stride == 1;
        for jb in self.b_panels.clone() {
            let b = &self.b[jb * nr * block.kc..][..nr * block.kc];
            let j = block.j0 + jb * nr;
            for ib in self.a_panels.clone() {
                let a = &self.a[ib * MR * A_PITCH..][..MR * A_PITCH];
                let i = block.i0 + ib * MR;
                let out = Out {
                    rows: MR.min(job.m - i),
                    cols: nr.min(job.n - j),
                    add: job.accumulate || block.k0 > 0,
                    bias: if block.k0 == 0 { job.bias.map(|bias| &bias[j..]) } else { None },
                    // SAFETY: (i, j) lies within C.
                    c: unsafe { self.c.ptr().add(i * job.c_stride + j) },
                    stride: job.c_stride,
                };
                // SAFETY: the panels hold `kc` steps of `MR` rows and `nr` columns, padded with 0,
                // and no other task writes this tile of C.
                unsafe {
                    if by_rows {
                        rows_tile::<S, MR, NV>(s, block.kc, a.as_ptr(), b.as_ptr(), &out);
                    } else {
                        tile::<S, MR, NV, 1, MR>(s, block.kc, a.as_ptr(), b.as_ptr(), &out);
                    }
                }
            }
        }
    }
}

/// The place of a tile in C, and how it is stored.
struct Out<'a> {
    rows: usize,
    cols: usize,
    add: bool,
    bias: Option<&'a [f32]>,
    c: *mut f32,
    stride: usize,
}

/// Runs a tile over a row-by-row panel. The last panel uses a smaller tile if it has few rows.
#[inline(always)]
unsafe fn rows_tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    kc: usize,
    a: *const f32,
    b: *const f32,
    out: &Out<'_>,
) {
    // SAFETY: as promised by the caller; a smaller tile reads fewer rows of the same panel.
    unsafe {
        if out.rows <= 4 && MR > 4 {
            tile::<S, 4, NV, A_PITCH, 1>(s, kc, a, b, out);
        } else if out.rows <= 8 && MR > 8 {
            tile::<S, 8, NV, A_PITCH, 1>(s, kc, a, b, out);
        } else {
            tile::<S, MR, NV, A_PITCH, 1>(s, kc, a, b, out);
        }
    }
}

/// Computes `MR × NV` vectors of C in registers over `kc` steps. `A_ROW` and `A_STEP` are the
/// strides of the panel of A; as constants they become address offsets.
///
/// # Safety
/// `a` holds `MR` rows and `b` `NV` vectors for each of `kc` steps; `out` is writable.
#[inline(always)]
unsafe fn tile<
    S: Simd,
    const MR: usize,
    const NV: usize,
    const A_ROW: usize,
    const A_STEP: usize,
>(
    s: S,
    kc: usize,
    mut a: *const f32,
    mut b: *const f32,
    out: &Out<'_>,
) {
    // The rows of C are far apart and not in the cache. They arrive while the sums are computed.
    for i in 0..MR.min(out.rows) {
        for v in 0..=NV {
            let at = (v * S::LANES).min(NV * S::LANES - 1);
            s.prefetch(out.c.wrapping_add(i * out.stride + at));
        }
    }
    let mut acc = [[s.splat(0.0); NV]; MR];
    for _ in 0..kc {
        let mut bv = [s.splat(0.0); NV];
        for v in 0..NV {
            // SAFETY: in the panel.
            bv[v] = unsafe { s.load(b.add(v * S::LANES)) };
        }
        for i in 0..MR {
            // SAFETY: in the panel.
            let av = s.splat(unsafe { *a.add(i * A_ROW) });
            for v in 0..NV {
                acc[i][v] = s.fma(av, bv[v], acc[i][v]);
            }
        }
        // SAFETY: at most one step past the end, where nothing is read.
        unsafe {
            a = a.add(A_STEP);
            b = b.add(NV * S::LANES);
        }
    }
    for i in 0..MR {
        if i >= out.rows {
            break;
        }
        for v in 0..NV {
            let n = out.cols.saturating_sub(v * S::LANES).min(S::LANES);
            // SAFETY: row i and `n` columns from v * LANES lie within the tile of C.
            unsafe { put(s, acc[i][v], out, out.c.add(i * out.stride + v * S::LANES), v, n) };
        }
    }
}

/// Writes one vector of a tile to C, or adds it; plus the bias.
///
/// # Safety
/// `n` floats at `c` are writable.
#[inline(always)]
unsafe fn put<S: Simd>(s: S, acc: S::V, out: &Out<'_>, c: *mut f32, v: usize, n: usize) {
    if n == 0 {
        return;
    }
    let mut value = acc;
    // SAFETY: promised by the caller; the bias has a number for each column.
    unsafe {
        if let Some(bias) = out.bias {
            value = s.add(value, s.load_n(bias.as_ptr().add(v * S::LANES), n));
        }
        if n == S::LANES {
            if out.add {
                value = s.add(value, s.load(c));
            }
            s.store(c, value);
        } else {
            if out.add {
                value = s.add(value, s.load_n(c, n));
            }
            s.store_n(c, value, n);
        }
    }
}
