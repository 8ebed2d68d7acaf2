//! 128-bit vectors of 64-bit ARM.

use std::arch::aarch64::*;

use super::Simd;

/// Proof that the processor has the instruction set.
#[derive(Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vld1q_f32(src) }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vst1q_f32(dst, v) }
    }
    #[inline(always)]
    unsafe fn load_n(self, src: *const f32, n: usize) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let mut lanes = [0.0f32; 4];
            std::ptr::copy_nonoverlapping(src, lanes.as_mut_ptr(), n.min(4));
            vld1q_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_n(self, dst: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let mut lanes = [0.0f32; 4];
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), dst, n.min(4));
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vbslq_f32(vcgtq_f32(a, b), x, y) }
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn hmax(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { vmaxvq_f32(a) }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        // SAFETY: both blocks of four strided rows are the caller's.
        unsafe {
            let row = |i: usize| src.add(i * src_stride);
            let r = [vld1q_f32(row(0)), vld1q_f32(row(1)), vld1q_f32(row(2)), vld1q_f32(row(3))];
            let (a, b) = (vtrnq_f32(r[0], r[1]), vtrnq_f32(r[2], r[3]));
            let columns = [
                vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0)),
                vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1)),
                vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0)),
                vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1)),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                vst1q_f32(dst.add(j * dst_stride), column);
            }
        }
    }
}
