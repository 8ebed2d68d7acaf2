//! Copies between rows of tokens and the padded tiles that the products read.

use lehr_kernels::simd::Simd;

use super::BLOCK;

/// The largest number of lanes.
const LANES_MAX: usize = 16;

/// Up to [`BLOCK`] rows of floats: queries, keys or values of one head.
pub(super) struct Rows<'a> {
    data: &'a [f32],
    /// Where each row starts.
    starts: [usize; BLOCK],
    n: usize,
}

impl<'a> Rows<'a> {
    /// `n` rows; row `i` starts at `start(i)`.
    #[inline(always)]
    pub(super) fn new(data: &'a [f32], n: usize, start: impl Fn(usize) -> usize) -> Self {
        let mut starts = [0; BLOCK];
        starts[..n].iter_mut().enumerate().for_each(|(i, at)| *at = start(i));
        Self { data, starts, n }
    }

    /// `n` rows, `stride` apart.
    #[inline(always)]
    pub(super) fn strided(data: &'a [f32], stride: usize, n: usize) -> Self {
        Self::new(data, n, |i| i * stride)
    }

    /// Whether the first `n` rows have `width` floats each.
    #[inline(always)]
    pub(super) fn hold(&self, n: usize, width: usize) -> bool {
        n <= self.n && self.starts[..n].iter().all(|start| start + width <= self.data.len())
    }

    /// Row `i`, unchecked.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(self.starts[i])
    }

    /// The distance of the rows `first..first + n`, if it is the same for all.
    #[inline(always)]
    fn stride(&self, first: usize, n: usize) -> Option<usize> {
        let starts = &self.starts[first..first + n];
        let stride = starts[1].checked_sub(starts[0])?;
        starts.windows(2).all(|pair| pair[0] + stride == pair[1]).then_some(stride)
    }
}

/// Rows of `width` floats into the transposed tile `dst` `[padded][BLOCK]`, times `factor`. Rows
/// beyond the last and columns beyond `width` are 0.
#[inline(always)]
pub(super) fn transposed<S: Simd>(
    s: S,
    src: &Rows<'_>,
    width: usize,
    factor: f32,
    dst: &mut [f32],
) {
    transpose_first(s, src, width, BLOCK, dst);
    if factor != 1.0 {
        let factor = s.splat(factor);
        for i in (0..dst.len()).step_by(S::LANES) {
            // SAFETY: the length is a multiple of lanes.
            unsafe {
                let at = dst.as_mut_ptr().add(i);
                s.store(at, s.mul(s.load(at), factor));
            }
        }
    }
}

/// [`transposed`] for the first `first` columns of the tile, rounded up to whole vectors.
#[inline(always)]
pub(super) fn transpose_first<S: Simd>(
    s: S,
    src: &Rows<'_>,
    width: usize,
    first: usize,
    dst: &mut [f32],
) {
    let (lanes, n) = (S::LANES, src.n);
    assert!(
        dst.len().is_multiple_of(BLOCK * LANES_MAX) && dst.len() >= BLOCK * width && first <= BLOCK
    );
    assert!(src.hold(n, width), "rows lie within the buffer");
    let padded = dst.len() / BLOCK;
    let mut edge = [0.0f32; LANES_MAX * LANES_MAX];
    for r in (0..first).step_by(lanes) {
        let rows = n.saturating_sub(r).min(lanes);
        let stride = if rows == lanes { src.stride(r, lanes) } else { None };
        for c in (0..padded).step_by(lanes) {
            let columns = width.saturating_sub(c).min(lanes);
            // SAFETY: `rows` rows of `columns` floats lie within the source by the assertion, and
            // a block of lanes × lanes within the tile, whose extents are multiples of lanes.
            unsafe {
                let to = dst.as_mut_ptr().add(c * BLOCK + r);
                if let Some(stride) = stride.filter(|_| columns == lanes) {
                    s.transpose(src.row(r).add(c), stride, to, BLOCK);
                    continue;
                }
                for i in 0..lanes {
                    let mut v = s.splat(0.0);
                    if i < rows && columns > 0 {
                        v = s.load_n(src.row(r + i).add(c), columns);
                    }
                    s.store(edge.as_mut_ptr().add(i * lanes), v);
                }
                s.transpose(edge.as_ptr(), lanes, to, BLOCK);
            }
        }
    }
}

/// Rows of `width` floats into the tile `dst` `[BLOCK][padded]`. Rows beyond the last and columns
/// beyond `width` are 0.
#[inline(always)]
pub(super) fn rows<S: Simd>(s: S, src: &Rows<'_>, width: usize, dst: &mut [f32]) {
    let (padded, n) = (dst.len() / BLOCK, src.n);
    assert!(padded.is_multiple_of(LANES_MAX) && padded >= width);
    assert!(src.hold(n, width), "rows lie within the buffer");
    for r in 0..n {
        for c in (0..padded).step_by(S::LANES) {
            let columns = width.saturating_sub(c).min(S::LANES);
            // SAFETY: `columns` floats of row r and a whole vector of the tile are in bounds.
            unsafe {
                let mut v = s.splat(0.0);
                if columns > 0 {
                    v = s.load_n(src.row(r).add(c), columns);
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
