//! Bytes in 512-bit vectors, multiplied by VNNI.

use std::arch::x86_64::*;

use super::Bytes;
use super::quad::quad_methods;
use crate::simd::Simd;

/// Proof that the processor has the instruction set.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni(());

impl Avx512Vnni {
    /// # Safety
    /// The processor has AVX-512 F, DQ, BW, VL and VNNI, and F16C.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Bytes for Avx512Vnni {
    type B = __m512i;
    type I = __m512i;
    type F = __m512;
    type Q = __m128;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn load(self, src: *const u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_loadu_si512(src.cast()) }
    }
    #[inline(always)]
    unsafe fn load_runs(self, src: *const u8, stride: usize) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let run = |i: usize| _mm_loadu_si128(src.add(i * stride).cast());
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(run(0)), run(1));
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(run(2)), run(3));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn load_word(self, src: *const u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_set1_epi32(src.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const u8, src_stride: usize, dst: *mut u8, dst_stride: usize) {
        // SAFETY: the token includes that of the floats, whose moves leave bits alone; pointers are
        // the caller's promise, strides are multiples of 4.
        unsafe {
            let s = crate::simd::Avx512::new();
            s.transpose(src.cast(), src_stride / 4, dst.cast(), dst_stride / 4);
        }
    }
    #[inline(always)]
    fn prefetch(self, src: *const u8) {
        // SAFETY: a hint: it reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut u8, v: __m512i) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_storeu_si512(dst.cast(), v) }
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_set1_epi8(byte as i8) }
    }
    #[inline(always)]
    fn select_bits(self, bits: u64, value: u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_maskz_set1_epi8(bits, value as i8) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn bits<const SHIFT: u32>(self, a: __m512i, mask: u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(a), _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn bits_by_run(self, a: __m512i, shifts: [u32; 4], mask: u8) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let [a0, a1, a2, a3] = shifts.map(|s| s as i32);
            let counts =
                _mm512_setr_epi32(a0, a0, a0, a0, a1, a1, a1, a1, a2, a2, a2, a2, a3, a3, a3, a3);
            // Bits that cross into a neighbouring byte are masked away.
            _mm512_and_si512(_mm512_srlv_epi32(a, counts), _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn shl<const SHIFT: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_slli_epi16::<SHIFT>(a) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], a: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), a)
        }
    }
    #[inline(always)]
    fn zip_first(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_unpacklo_epi8(a, b) }
    }
    #[inline(always)]
    fn zip_last(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_unpackhi_epi8(a, b) }
    }
    #[inline(always)]
    fn deal(self, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b)) }
    }
    #[inline(always)]
    fn deal_in_turn(self, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            (_mm512_permutex2var_epi64(a, first, b), _mm512_permutex2var_epi64(a, second, b))
        }
    }
    #[inline(always)]
    fn zero_i(self) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    fn dot_signed(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            // The instruction wants one factor without sign: |w| · (±x).
            let negative = _mm512_movepi8_mask(w);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(w), x)
        }
    }
    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, src: *const f32) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, dst: *mut f32, v: __m512) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_storeu_ps(dst, v) }
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const u8) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const u8) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, table: &[f32; 16], src: *const u8) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let bytes = _mm_loadl_epi64(src.cast());
            // The permutation looks at the low four bits of an index alone.
            let index = _mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes);
            _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(index), _mm512_loadu_ps(table.as_ptr()))
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn spread(self, a: __m128) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(a))
        }
    }
    #[inline(always)]
    fn spread_rows(self, [a, b, c, d]: [__m128; 4]) -> __m512 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let low = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(a), b);
            let high = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(c), d);
            let rows = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            let lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(lanes, rows)
        }
    }
    #[inline(always)]
    fn sum_groups(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let pairs =
                |x, y| _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
            let (ab, cd) = (pairs(a, b), pairs(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
    }
    #[inline(always)]
    fn sum_runs(self, a: __m512) -> __m128 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a))
        }
    }
    quad_methods!();
}
