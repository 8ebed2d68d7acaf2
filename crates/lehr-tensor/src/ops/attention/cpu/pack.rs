//! Copies between rows of tokens and the padded tiles that the products read.

use super::BLOCK;
use crate::cpu::simd::Simd;

/// The largest number of lanes.
const LANES_MAX: usize = 16;

/// `n` rows of `width` floats, `stride` apart, into the transposed tile `dst` `[padded][BLOCK]`,
/// times `factor`. Rows beyond `n` and columns beyond `width` are 0.
#[inline(always)]
pub(super) fn transposed<S: Simd>(
    s: S,
    src: &[f32],
    stride: usize,
    (n, width): (usize, usize),
    factor: f32,
    dst: &mut [f32],
) {
    let lanes = S::LANES;
    assert!(
        dst.len().is_multiple_of(BLOCK * LANES_MAX) && dst.len() >= BLOCK * width && n <= BLOCK
    );
    assert!(n == 0 || (n - 1) * stride + width <= src.len(), "rows lie within the buffer");
    let padded = dst.len() / BLOCK;
    let mut edge = [0.0f32; LANES_MAX * LANES_MAX];
    for r in (0..BLOCK).step_by(lanes) {
        for c in (0..padded).step_by(lanes) {
            let rows = n.saturating_sub(r).min(lanes);
            let columns = width.saturating_sub(c).min(lanes);
            // SAFETY: `rows` rows of `columns` floats lie within the source by the assertion, and
            // a block of lanes × lanes within the tile, whose extents are multiples of lanes.
            unsafe {
                let to = dst.as_mut_ptr().add(c * BLOCK + r);
                if rows == lanes && columns == lanes {
                    s.transpose(src.as_ptr().add(r * stride + c), stride, to, BLOCK);
                    continue;
                }
                for i in 0..lanes {
                    let mut v = s.splat(0.0);
                    if i < rows && columns > 0 {
                        v = s.load_n(src.as_ptr().add((r + i) * stride + c), columns);
                    }
                    s.store(edge.as_mut_ptr().add(i * lanes), v);
                }
                s.transpose(edge.as_ptr(), lanes, to, BLOCK);
            }
        }
    }
    if factor != 1.0 {
        let factor = s.splat(factor);
        for i in (0..dst.len()).step_by(lanes) {
            // SAFETY: the length is a multiple of lanes.
            unsafe {
                let at = dst.as_mut_ptr().add(i);
                s.store(at, s.mul(s.load(at), factor));
            }
        }
    }
}

/// `n` rows of `width` floats, `stride` apart, into the tile `dst` `[BLOCK][padded]`. Rows beyond
/// `n` and columns beyond `width` are 0.
#[inline(always)]
pub(super) fn rows<S: Simd>(
    s: S,
    src: &[f32],
    stride: usize,
    (n, width): (usize, usize),
    dst: &mut [f32],
) {
    let padded = dst.len() / BLOCK;
    assert!(padded.is_multiple_of(LANES_MAX) && padded >= width && n <= BLOCK);
    assert!(n == 0 || (n - 1) * stride + width <= src.len(), "rows lie within the buffer");
    for r in 0..n {
        for c in (0..padded).step_by(S::LANES) {
            let columns = width.saturating_sub(c).min(S::LANES);
            // SAFETY: `columns` floats of row r and a whole vector of the tile are in bounds.
            unsafe {
                let mut v = s.splat(0.0);
                if columns > 0 {
                    v = s.load_n(src.as_ptr().add(r * stride + c), columns);
                }
                s.store(dst.as_mut_ptr().add(r * padded + c), v);
            }
        }
    }
    dst[n * padded..].fill(0.0);
}

/// Writes, or adds if `add`, `factor · src` to `dst`.
#[inline(always)]
pub(super) fn put_row<S: Simd>(s: S, src: &[f32], factor: f32, dst: &mut [f32], add: bool) {
    let n = dst.len();
    assert!(src.len() >= n);
    let factor = s.splat(factor);
    for c in (0..n).step_by(S::LANES) {
        let have = (n - c).min(S::LANES);
        // SAFETY: `have` floats from c lie within both rows.
        unsafe {
            let v = s.load_n(src.as_ptr().add(c), have);
            let to = dst.as_mut_ptr().add(c);
            let v = if add { s.fma(v, factor, s.load_n(to, have)) } else { s.mul(v, factor) };
            s.store_n(to, v, have);
        }
    }
}

/// The tile `src` `[padded][BLOCK]` transposed into `dst` `[BLOCK][padded]`.
#[inline(always)]
pub(super) fn transpose_back<S: Simd>(s: S, src: &[f32], dst: &mut [f32]) {
    assert!(src.len() == dst.len() && src.len().is_multiple_of(BLOCK * LANES_MAX));
    let padded = src.len() / BLOCK;
    for r in (0..padded).step_by(S::LANES) {
        for c in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: both extents are multiples of lanes.
            unsafe {
                let from = src.as_ptr().add(r * BLOCK + c);
                s.transpose(from, BLOCK, dst.as_mut_ptr().add(c * padded + r), padded);
            }
        }
    }
}
