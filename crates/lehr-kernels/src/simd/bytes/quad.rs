//! Vectors of four floats in 128 bits, which AVX2 and AVX-512 share.

/// The methods of [`Bytes`](super::Bytes) over `Q = __m128`.
///
/// A macro rather than functions, because each implementation compiles the methods with its own
/// target features. The place of use imports `std::arch::x86_64`.
macro_rules! quad_methods {
    () => {
        #[inline(always)]
        fn q(self, a: [f32; 4]) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_loadu_ps(a.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn q_load(self, src: *const f32) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_loadu_ps(src) }
        }
        #[inline(always)]
        unsafe fn q_f16(self, src: *const u8, stride: usize) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe {
                let word = |i: usize| src.add(i * stride).cast::<u16>().read_unaligned() as i32;
                let words = _mm_cvtsi32_si128(word(0));
                let words = _mm_insert_epi16::<1>(words, word(1));
                let words = _mm_insert_epi16::<2>(words, word(2));
                _mm_cvtph_ps(_mm_insert_epi16::<3>(words, word(3)))
            }
        }
        #[inline(always)]
        unsafe fn q_f16_splat(self, src: *const u8) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_cvtph_ps(_mm_set1_epi16(src.cast::<i16>().read_unaligned())) }
        }
        #[inline(always)]
        fn q_u8(self, a: u32) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(a as i32))) }
        }
        #[inline(always)]
        fn q_u16(self, a: u64) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_cvtepi32_ps(_mm_cvtepu16_epi32(_mm_cvtsi64_si128(a as i64))) }
        }
        #[inline(always)]
        fn q_mul(self, a: __m128, b: __m128) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_mul_ps(a, b) }
        }
        #[inline(always)]
        fn q_fma(self, a: __m128, b: __m128, c: __m128) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe { _mm_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn q_keep(self, a: __m128, n: usize) -> __m128 {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe {
                let lane = _mm_setr_epi32(0, 1, 2, 3);
                let keep = _mm_cmplt_epi32(lane, _mm_set1_epi32(n as i32));
                _mm_and_ps(a, _mm_castsi128_ps(keep))
            }
        }
        #[inline(always)]
        fn q_array(self, a: __m128) -> [f32; 4] {
            // SAFETY: the token proves the instruction set; pointers are the caller's promise.
            unsafe {
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), a);
                out
            }
        }
    };
}
pub(super) use quad_methods;
