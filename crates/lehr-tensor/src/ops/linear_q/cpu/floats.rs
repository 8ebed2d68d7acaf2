//! Few rows of activations times weights of 16 or 32 bits or of NF4, which become f32 in registers.

use std::ops::Range;

use super::decode::{AHEAD, split};
use crate::Result;
use crate::cpu::simd::bytes::{Bytes, BytesKernel, dispatch_bytes};
use crate::cpu::threads::SharedMut;
use crate::quant::{NF4, NF4_GROUP, QMatrix};

/// A format whose numbers are floats, or levels of a table of floats.
pub(super) trait Float: Copy + Send + Sync {
    /// Numbers `16 k` to `16 k + 15` of a row.
    ///
    /// # Safety
    /// They can be read, and so can the scales of the row if they lie apart.
    unsafe fn load<S: Bytes>(self, s: S, row: *const u8, scales: *const f32, k: usize) -> S::F;
}

macro_rules! float {
    ($name:ident, $size:literal, $load:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Float for $name {
            #[inline(always)]
            unsafe fn load<S: Bytes>(self, s: S, row: *const u8, _: *const f32, k: usize) -> S::F {
                // SAFETY: promised by the caller.
                unsafe { s.$load(row.add(k * 16 * $size).cast()) }
            }
        }
    };
}

float!(F32, 4, load_f32);
float!(F16, 2, load_f16);
float!(Bf16, 2, load_bf16);

#[derive(Clone, Copy)]
pub(super) struct Nf4;

impl Float for Nf4 {
    #[inline(always)]
    unsafe fn load<S: Bytes>(self, s: S, row: *const u8, scales: *const f32, k: usize) -> S::F {
        // SAFETY: promised by the caller.
        unsafe {
            let scale = s.splat_f32(*scales.add(k / (NF4_GROUP / 16)));
            s.mul(scale, s.load_nibbles(&NF4, row.add(k * 8)))
        }
    }
}

/// `y = x Wᵀ + bias` for any number of rows of `x`.
pub(super) fn multiply<W: Float>(
    format: W,
    w: &QMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let cols = w.cols();
    let y = SharedMut::new(y);
    split(w, x.len() / cols, |rows, first, count| {
        let job = Job { w, x: &x[first * cols..], bias, y, first, rows };
        match count {
            1 => dispatch_bytes(Rows::<W, 1, 4> { format, job }),
            2 => dispatch_bytes(Rows::<W, 2, 2> { format, job }),
            _ => dispatch_bytes(Rows::<W, 4, 1> { format, job }),
        }
    });
    Ok(())
}

struct Job<'a> {
    w: &'a QMatrix,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    y: SharedMut<f32>,
    /// The first row of activations.
    first: usize,
    /// Rows of weights.
    rows: Range<usize>,
}

/// `M` rows of activations times some rows of weights, in `C` chains of additions each.
struct Rows<'a, W, const M: usize, const C: usize> {
    format: W,
    job: Job<'a>,
}

impl<W: Float, const M: usize, const C: usize> BytesKernel for Rows<'_, W, M, C> {
    type Out = ();

    #[inline(always)]
    fn run<S: Bytes>(self, s: S) {
        let Self { format, job } = self;
        let (bytes, cols, row_bytes) = (job.w.bytes(), job.w.cols(), job.w.row_bytes());
        let row_scales = job.w.format().row_scales(cols);
        let x = &job.x[..M * cols];
        let whole = cols / 16;
        // The columns after the last whole vector, padded with zeros.
        let rest = cols - whole * 16;
        let step = row_bytes / whole.max(1);
        let mut x_rest = [[0.0f32; 16]; M];
        for (i, x_rest) in x_rest.iter_mut().enumerate() {
            x_rest[..rest].copy_from_slice(&x[i * cols + whole * 16..][..rest]);
        }
        for r in job.rows.clone() {
            let row = &bytes[r * row_bytes..][..row_bytes];
            let scales = job.w.scales()[r * row_scales..].as_ptr();
            let mut acc = [[s.zero(); C]; M];
            for k in 0..whole {
                // SAFETY: 16 numbers from 16 k are in the rows.
                unsafe {
                    let v = format.load(s, row.as_ptr(), scales, k);
                    s.prefetch(row.as_ptr().wrapping_add(k * step + AHEAD));
                    for i in 0..M {
                        let x = s.load_f32(x.as_ptr().add(i * cols + k * 16));
                        acc[i][k % C] = s.fma(v, x, acc[i][k % C]);
                    }
                }
            }
            if rest > 0 {
                let mut padded = [0u8; 64];
                let rest_bytes = row_bytes / cols * rest;
                padded[..rest_bytes].copy_from_slice(&row[row_bytes - rest_bytes..]);
                // SAFETY: there is room for 16 numbers of at most four bytes. Rows with a rest have
                // no scales.
                unsafe {
                    let v = format.load(s, padded.as_ptr(), scales, 0);
                    for i in 0..M {
                        acc[i][0] = s.fma(v, s.load_f32(x_rest[i].as_ptr()), acc[i][0]);
                    }
                }
            }
            let bias = job.bias.map_or(0.0, |bias| bias[r]);
            for i in 0..M {
                let mut sum = acc[i][0];
                for chain in &acc[i][1..] {
                    sum = s.add(sum, *chain);
                }
                // SAFETY: row `first + i` and column r lie within y; no other task has column r.
                let y = unsafe { &mut *job.y.ptr().add((job.first + i) * job.w.rows() + r) };
                *y = s.sum(sum) + bias;
            }
        }
    }
}
