//! 512-bit vectors.

use std::arch::x86_64::*;

use super::Simd;

/// Proof that the processor has the instruction set.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F and DQ.
    #[inline(always)]
    pub(in crate::simd) unsafe fn new() -> Self {
        Self(())
    }
}

/// Ones for the first `n` lanes.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_storeu_ps(dst, v) }
    }
    #[inline(always)]
    unsafe fn load_n(self, src: *const f32, n: usize) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { if n == 16 { _mm512_loadu_ps(src) } else { _mm512_maskz_loadu_ps(mask(n), src) } }
    }
    #[inline(always)]
    unsafe fn store_n(self, dst: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            if n == 16 { _mm512_storeu_ps(dst, v) } else { _mm512_mask_storeu_ps(dst, mask(n), v) }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_roundscale_ps::<0>(a) }
    }
    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn hmax(self, a: Self::V) -> f32 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        // SAFETY: both blocks of sixteen strided rows are the caller's.
        unsafe {
            // A loop: a closure could be compiled by itself, without the instructions.
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(src.add(i * src_stride));
            }
            // Pairs of rows, then quadruples within each 128-bit lane.
            for i in 0..8 {
                let (a, b) = (r[2 * i], r[2 * i + 1]);
                r[2 * i] = _mm512_unpacklo_ps(a, b);
                r[2 * i + 1] = _mm512_unpackhi_ps(a, b);
            }
            for g in 0..4 {
                let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
                r[4 * g] = _mm512_shuffle_ps::<0x44>(a, c);
                r[4 * g + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
                r[4 * g + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                r[4 * g + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
            }
            // `r[4g + i]` now holds columns i, 4 + i, 8 + i, 12 + i of the rows 4g to 4g + 3, one
            // per 128-bit lane: a 4 × 4 transpose of lanes finishes.
            for i in 0..4 {
                let [a, b, c, d] = [r[i], r[4 + i], r[8 + i], r[12 + i]];
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xDD>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xDD>(c, d);
                let store = |column: usize, v| _mm512_storeu_ps(dst.add(column * dst_stride), v);
                store(i, _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even));
                store(4 + i, _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd));
                store(8 + i, _mm512_shuffle_f32x4::<0xDD>(ab_even, cd_even));
                store(12 + i, _mm512_shuffle_f32x4::<0xDD>(ab_odd, cd_odd));
            }
        }
    }
    #[inline(always)]
    unsafe fn round_row(self, src: *const f32, factor: f32, dst: *mut u32) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            for half in 0..2 {
                let rounded = rounded(src.add(16 * half), factor);
                let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
                _mm256_storeu_si256(dst.add(8 * half).cast(), halves);
            }
        }
    }
    #[inline(always)]
    unsafe fn round_rows(self, rows: [*const f32; 2], factor: f32, dst: *mut u32) {
        // SAFETY: as above.
        unsafe {
            let (first, second) = (rounded(rows[0], factor), rounded(rows[1], factor));
            let upper = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
            // a | b & c, bit by bit.
            let words =
                _mm512_ternarylogic_epi32::<0xF8>(_mm512_srli_epi32::<16>(first), second, upper);
            _mm512_storeu_si512(dst.cast(), words);
        }
    }
}

/// Sixteen numbers times `factor`; the upper half of each lane is the nearest bf16, ties to even.
///
/// # Safety
/// The processor has AVX-512 F, and 16 floats at `src` can be read.
#[inline(always)]
unsafe fn rounded(src: *const f32, factor: f32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm512_mul_ps(_mm512_loadu_ps(src), _mm512_set1_ps(factor));
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
        // Rounding could turn a NaN into infinity; its quiet bit stays instead.
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_mask_mov_epi32(_mm512_add_epi32(bits, up), is_nan, quiet)
    }
}
