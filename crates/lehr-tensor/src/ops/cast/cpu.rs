//! Conversions between f32 and the 16-bit types, at the speed of memory.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use lehr_kernels::CHUNK;
use lehr_kernels::buffer::Element;
use lehr_kernels::simd::{Kernel, Simd, dispatch};
use lehr_kernels::threads;

/// A 16-bit float.
pub(super) trait Half: Element {
    /// Exact.
    fn widen(src: &[Self], dst: &mut [f32]);
    /// Rounds to nearest, ties to even.
    fn narrow(src: &[f32], dst: &mut [Self]);
}

// The crate `half` uses the processor's conversion instructions where they exist.
impl Half for f16 {
    fn widen(src: &[Self], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

impl Half for bf16 {
    fn widen(src: &[Self], dst: &mut [f32]) {
        dispatch(Widen { src, dst });
    }

    fn narrow(src: &[f32], dst: &mut [Self]) {
        dispatch(Narrow { src, dst });
    }
}

struct Widen<'a> {
    src: &'a [bf16],
    dst: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (dst, src) in self.dst.iter_mut().zip(self.src) {
            *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
        }
    }
}

struct Narrow<'a> {
    src: &'a [f32],
    dst: &'a mut [bf16],
}

impl Kernel for Narrow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (dst, src) in self.dst.iter_mut().zip(self.src) {
            let bits = src.to_bits();
            // Half a unit, less one if the result is even already: ties go to even. A NaN keeps
            // its upper bits and becomes quiet.
            let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
            let bits = if src.is_nan() { bits | 0x0040_0000 } else { rounded };
            *dst = bf16::from_bits((bits >> 16) as u16);
        }
    }
}

pub(super) fn widen<H: Half>(src: &[H], dst: &mut [f32]) {
    threads::run_chunks(dst, CHUNK, |index, dst| {
        H::widen(&src[index * CHUNK..][..dst.len()], dst);
    });
}

pub(super) fn narrow<H: Half>(src: &[f32], dst: &mut [H]) {
    threads::run_chunks(dst, CHUNK, |index, dst| {
        H::narrow(&src[index * CHUNK..][..dst.len()], dst);
    });
}

/// From one 16-bit type to the other: exact to f32, then rounded once.
pub(super) fn exchange<A: Half, B: Half>(src: &[A], dst: &mut [B]) {
    /// Numbers that pass through the first cache at once.
    const RUN: usize = 1024;
    threads::run_chunks(dst, CHUNK, |index, dst| {
        let src = &src[index * CHUNK..][..dst.len()];
        let mut wide = [0.0; RUN];
        for (src, dst) in src.chunks(RUN).zip(dst.chunks_mut(RUN)) {
            A::widen(src, &mut wide[..src.len()]);
            B::narrow(&wide[..src.len()], dst);
        }
    });
}
