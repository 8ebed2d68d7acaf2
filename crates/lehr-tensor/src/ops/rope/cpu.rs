//! The rotation, forward and backward.

use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use super::RopeTable;
use super::table::{Angles, Pairs, RopeLayout};
use crate::ops::rows_per_task;

/// `y (+)=` the heads of `x` rotated by the table's angles times `sign`.
pub(super) fn rotate(
    x: &[f32],
    table: &RopeTable,
    angles: &Angles,
    n_heads: usize,
    width: usize,
    sign: f32,
    y: &mut [f32],
    accumulate: bool,
) {
    let (row, half) = (n_heads * width, table.rotary_dim() / 2);
    let (cos, sin) = (angles.cos.data(), angles.sin.data());
    let tokens = rows_per_task(row);
    threads::run_chunks(y, tokens * row, |index, y| {
        let start = index * tokens;
        let x = &x[start * row..][..y.len()];
        let (cos, sin) = (&cos[start * half..], &sin[start * half..]);
        let pairs = table.pairs();
        dispatch(Rotate { x, cos, sin, pairs, half, row, width, sign, y, accumulate });
    });
}

struct Rotate<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: Pairs,
    /// Number of pairs per head.
    half: usize,
    /// Numbers per token.
    row: usize,
    /// Numbers per head.
    width: usize,
    sign: f32,
    y: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.half;
        let (sign, accumulate) = (self.sign, self.accumulate);
        let tokens = self.x.chunks_exact(self.row).zip(self.y.chunks_exact_mut(self.row));
        for (t, (x, y)) in tokens.enumerate() {
            let (cos, sin) = (&self.cos[t * half..][..half], &self.sin[t * half..][..half]);
            for (x, y) in x.chunks_exact(self.width).zip(y.chunks_exact_mut(self.width)) {
                let (x_rotated, x_rest) = x.split_at(2 * half);
                let (y_rotated, y_rest) = y.split_at_mut(2 * half);
                match self.pairs {
                    Pairs::Layout(RopeLayout::HalfSplit) => {
                        half_split(s, x_rotated, cos, sin, sign, y_rotated, accumulate);
                    }
                    Pairs::Layout(RopeLayout::AdjacentPairs) => {
                        adjacent(x_rotated, cos, sin, sign, y_rotated, accumulate);
                    }
                    Pairs::TwoHalves => {
                        let (xa, xb) = x_rotated.split_at(half);
                        let (ya, yb) = y_rotated.split_at_mut(half);
                        let (cos_a, cos_b) = cos.split_at(half / 2);
                        let (sin_a, sin_b) = sin.split_at(half / 2);
                        half_split(s, xa, cos_a, sin_a, sign, ya, accumulate);
                        half_split(s, xb, cos_b, sin_b, sign, yb, accumulate);
                    }
                }
                copy(x_rest, y_rest, accumulate);
            }
        }
    }
}

/// Rotates dimension `i` with dimension `i + half`.
#[inline(always)]
fn half_split<S: Simd>(
    s: S,
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    sign: f32,
    y: &mut [f32],
    accumulate: bool,
) {
    let half = cos.len();
    assert!(x.len() == 2 * half && y.len() == 2 * half && sin.len() == half);
    let whole = half - half % S::LANES;
    let sign_v = s.splat(sign);
    for k in (0..whole).step_by(S::LANES) {
        // SAFETY: `LANES` numbers from k lie within both halves and within the table's row.
        unsafe {
            let (a, b) = (s.load(x.as_ptr().add(k)), s.load(x.as_ptr().add(half + k)));
            let c = s.load(cos.as_ptr().add(k));
            let d = s.mul(s.load(sin.as_ptr().add(k)), sign_v);
            let (ya, yb) = (y.as_mut_ptr().add(k), y.as_mut_ptr().add(half + k));
            let mut first = s.sub(s.mul(a, c), s.mul(b, d));
            let mut second = s.add(s.mul(b, c), s.mul(a, d));
            if accumulate {
                first = s.add(s.load(ya), first);
                second = s.add(s.load(yb), second);
            }
            s.store(ya, first);
            s.store(yb, second);
        }
    }
    for i in whole..half {
        let (a, b, c, d) = (x[i], x[half + i], cos[i], sin[i] * sign);
        let (first, second) = (a * c - b * d, b * c + a * d);
        y[i] = if accumulate { y[i] + first } else { first };
        y[half + i] = if accumulate { y[half + i] + second } else { second };
    }
}

/// Rotates dimension `2i` with dimension `2i + 1`.
#[inline(always)]
fn adjacent(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32], accumulate: bool) {
    let half = cos.len();
    let (x, y, sin) = (&x[..2 * half], &mut y[..2 * half], &sin[..half]);
    for i in 0..half {
        let (a, b, c, d) = (x[2 * i], x[2 * i + 1], cos[i], sin[i] * sign);
        let (first, second) = (a * c - b * d, b * c + a * d);
        y[2 * i] = if accumulate { y[2 * i] + first } else { first };
        y[2 * i + 1] = if accumulate { y[2 * i + 1] + second } else { second };
    }
}

/// Copies the dimensions that are not rotated.
#[inline(always)]
fn copy(x: &[f32], y: &mut [f32], accumulate: bool) {
    if accumulate {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    } else {
        y.copy_from_slice(x);
    }
}
