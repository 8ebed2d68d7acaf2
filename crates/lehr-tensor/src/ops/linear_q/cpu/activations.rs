//! The other factor, rounded to 8 bits.

use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

use crate::{DType, Result};

/// 128 numbers of a row in four groups of 32, each `code · scale` with scale = max |x| / 127.
#[repr(C, align(64))]
pub(super) struct Quad {
    /// The codes of the first 16 numbers of each group.
    pub(super) first: [i8; 64],
    /// The codes of the last 16 of each group.
    pub(super) second: [i8; 64],
    pub(super) scale: [f32; 4],
    /// Sums of the rounded numbers of each group, for weights with a minimum: of all, and of the
    /// halves. For signed codes `sum` is instead −128 times the sum of the codes of each group, an
    /// exact integer: what a product with codes plus 128 has too much.
    pub(super) sum: [f32; 4],
    pub(super) sum_first: [f32; 4],
    pub(super) sum_second: [f32; 4],
}

/// Floats in a [`Quad`].
const QUAD_FLOATS: usize = size_of::<Quad>() / size_of::<f32>();

/// Rows of activations, each padded to whole quads with zeros.
pub(super) struct Rounded {
    buffer: CpuBuffer,
    pub(super) n_quads: usize,
}

impl Rounded {
    /// Rounds the rows of `x`, `cols` wide, in parallel, for codes of weights with or without sign.
    /// Each group of 32 numbers is rounded by itself: nothing depends on the other rows.
    pub(super) fn new(x: &[f32], cols: usize, signed: bool) -> Result<Self> {
        let n_quads = cols.div_ceil(128);
        let rows = x.len() / cols;
        let mut buffer = CpuBuffer::uninit(DType::F32, rows * n_quads * QUAD_FLOATS)?;
        let rows_per_task = ((1usize << 14) / cols).max(1);
        let floats = buffer.as_mut_slice::<f32>();
        threads::run_chunks(floats, rows_per_task * n_quads * QUAD_FLOATS, |task, out| {
            // SAFETY: the buffer is aligned to 64 bytes, a chunk is whole quads, and every bit
            // pattern is a quad.
            let out = unsafe {
                std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len() / QUAD_FLOATS)
            };
            let x = &x[task * rows_per_task * cols..];
            dispatch(Round { x, cols, n_quads, signed, out });
        });
        Ok(Self { buffer, n_quads })
    }

    /// All quads, row after row.
    pub(super) fn quads(&self) -> &[Quad] {
        let floats = self.buffer.as_slice::<f32>();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len() / QUAD_FLOATS) }
    }
}

struct Round<'a> {
    x: &'a [f32],
    cols: usize,
    n_quads: usize,
    signed: bool,
    out: &'a mut [Quad],
}

impl Kernel for Round<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.x.chunks_exact(self.cols);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(self.n_quads)) {
            for (quad, out) in out.iter_mut().enumerate() {
                for group in 0..4 {
                    let x = &x[self.cols.min(quad * 128 + group * 32)..];
                    match x.first_chunk() {
                        Some(x) => round_group(x, group, self.signed, out),
                        None => {
                            let mut padded = [0.0; 32];
                            padded[..x.len()].copy_from_slice(x);
                            round_group(&padded, group, self.signed, out);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn round_group(x: &[f32; 32], group: usize, signed: bool, out: &mut Quad) {
    /// 1.5 · 2^23: a number of small magnitude plus this has its nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut largest = [0.0f32; 16];
    for i in 0..16 {
        largest[i] = x[i].abs().max(x[i + 16].abs());
    }
    let largest = largest.iter().fold(0.0f32, |m, v| m.max(*v));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let codes: [i32; 32] =
        std::array::from_fn(|i| (x[i] * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32);
    let first = out.first.as_chunks_mut::<16>().0;
    first[group] = std::array::from_fn(|i| codes[i] as i8);
    let second = out.second.as_chunks_mut::<16>().0;
    second[group] = std::array::from_fn(|i| codes[i + 16] as i8);
    // A NaN among the numbers must show, but `max` passes over it.
    let scale = largest / 127.0 + if x.iter().any(|v| v.is_nan()) { f32::NAN } else { 0.0 };
    let sum = |codes: &[i32]| codes.iter().sum::<i32>() as f32 * scale;
    out.scale[group] = scale;
    out.sum[group] = if signed { (-128 * codes.iter().sum::<i32>()) as f32 } else { sum(&codes) };
    out.sum_first[group] = sum(&codes[..16]);
    out.sum_second[group] = sum(&codes[16..]);
}
