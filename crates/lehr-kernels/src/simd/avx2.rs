//! 256-bit vectors with fused multiply-add.

use std::arch::x86_64::*;

use super::Simd;

/// Proof that the processor has the instruction set.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[inline(always)]
    pub(in crate::simd) unsafe fn new() -> Self {
        Self(())
    }
}

/// All ones in the first `n` lanes.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    // SAFETY: promised by the caller.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_storeu_ps(dst, v) }
    }
    #[inline(always)]
    unsafe fn load_n(self, src: *const f32, n: usize) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { if n == 8 { _mm256_loadu_ps(src) } else { _mm256_maskload_ps(src, mask(n)) } }
    }
    #[inline(always)]
    unsafe fn store_n(self, dst: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            if n == 8 { _mm256_storeu_ps(dst, v) } else { _mm256_maskstore_ps(dst, mask(n), v) }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
    #[inline(always)]
    fn hmax(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        // SAFETY: both blocks of eight strided rows are the caller's.
        unsafe {
            // A loop: a closure could be compiled by itself, without the instructions.
            let (mut lo, mut hi) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            // Pairs of rows, then quadruples, then the two 128-bit halves.
            for i in 0..4 {
                let first = _mm256_loadu_ps(src.add(2 * i * src_stride));
                let second = _mm256_loadu_ps(src.add((2 * i + 1) * src_stride));
                lo[i] = _mm256_unpacklo_ps(first, second);
                hi[i] = _mm256_unpackhi_ps(first, second);
            }
            let mut quad = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                quad[4 * g] = _mm256_shuffle_ps::<0x44>(lo[2 * g], lo[2 * g + 1]);
                quad[4 * g + 1] = _mm256_shuffle_ps::<0xEE>(lo[2 * g], lo[2 * g + 1]);
                quad[4 * g + 2] = _mm256_shuffle_ps::<0x44>(hi[2 * g], hi[2 * g + 1]);
                quad[4 * g + 3] = _mm256_shuffle_ps::<0xEE>(hi[2 * g], hi[2 * g + 1]);
            }
            for i in 0..4 {
                let (top, bottom) = (quad[i], quad[4 + i]);
                let low = _mm256_permute2f128_ps::<0x20>(top, bottom);
                let high = _mm256_permute2f128_ps::<0x31>(top, bottom);
                _mm256_storeu_ps(dst.add(i * dst_stride), low);
                _mm256_storeu_ps(dst.add((4 + i) * dst_stride), high);
            }
        }
    }
}
