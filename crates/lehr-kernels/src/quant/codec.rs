//! Shared parts of all codecs: f16 fields, and the loop over blocks for every instruction set.

use half::f16;

use crate::math::f16_to_f32;
use crate::simd::{Kernel, Simd, dispatch};
use crate::threads::{SharedMut, run};

/// Numbers per task, whole blocks of any format.
const CHUNK: usize = 1 << 14;

/// The f16 at byte `at`, as f32.
#[inline(always)]
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Writes `value`, rounded to f16, at byte `at`.
#[inline(always)]
pub(super) fn put_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

struct Decode<'a, F, const B: usize, const N: usize> {
    bytes: &'a [[u8; B]],
    out: &'a mut [[f32; N]],
    decode: F,
}

impl<F: Fn(&[u8; B], &mut [f32; N]), const B: usize, const N: usize> Kernel
    for Decode<'_, F, B, N>
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (block, out) in self.bytes.iter().zip(self.out) {
            (self.decode)(block, out);
        }
    }
}

struct Encode<'a, F, const B: usize, const N: usize> {
    values: &'a [[f32; N]],
    out: &'a mut [[u8; B]],
    encode: F,
}

impl<F: Fn(&[f32; N], &mut [u8; B]), const B: usize, const N: usize> Kernel
    for Encode<'_, F, B, N>
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (values, block) in self.values.iter().zip(self.out) {
            (self.encode)(values, block);
        }
    }
}

/// Decodes all blocks, in parallel. Products and sums are rounded one by one, so every
/// instruction set gives the same bits.
pub(super) fn decode_blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]) + Copy + Sync,
) {
    let (bytes, out) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<N>().0);
    let (n, step) = (out.len(), CHUNK / N);
    let out = SharedMut::new(out);
    run(n.div_ceil(step), |task| {
        let (start, len) = (task * step, step.min(n - task * step));
        // SAFETY: tasks own different blocks.
        let out = unsafe { out.slice(start, len) };
        dispatch(Decode { bytes: &bytes[start..start + len], out, decode });
    });
}

/// Encodes all blocks, in parallel.
pub(super) fn encode_blocks<const B: usize, const N: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &mut [u8; B]) + Copy + Sync,
) {
    let (values, out) = (values.as_chunks::<N>().0, out.as_chunks_mut::<B>().0);
    let (n, step) = (out.len(), CHUNK / N);
    let out = SharedMut::new(out);
    run(n.div_ceil(step), |task| {
        let (start, len) = (task * step, step.min(n - task * step));
        // SAFETY: tasks own different blocks.
        let out = unsafe { out.slice(start, len) };
        dispatch(Encode { values: &values[start..start + len], out, encode });
    });
}
