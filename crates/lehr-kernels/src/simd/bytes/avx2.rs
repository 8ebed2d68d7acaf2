//! Bytes in pairs of 256-bit vectors.

use std::arch::x86_64::*;

use super::Bytes;
use super::quad::quad_methods;
use crate::simd::Simd;

/// Proof that the processor has the instruction set.
#[derive(Clone, Copy)]
pub(super) struct Avx2Bytes(());

impl Avx2Bytes {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

type B = [__m256i; 2];

/// `acc + Σ` of four neighbouring products of unsigned `w` (at most 128) and signed `x`: sums of
/// two stay below 2^15.
#[inline(always)]
unsafe fn dot_half(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: called only by holders of the token.
    unsafe {
        let pairs = _mm256_maddubs_epi16(w, x);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

impl Bytes for Avx2Bytes {
    type B = B;
    type I = B;
    type F = [__m256; 2];
    type Q = __m128;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(self, src: *const u8) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_loadu_si256(src.cast()), _mm256_loadu_si256(src.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_runs(self, src: *const u8, stride: usize) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let run = |i: usize| _mm_loadu_si128(src.add(i * stride).cast());
            [
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(run(0)), run(1)),
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(run(2)), run(3)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_word(self, src: *const u8) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_set1_epi32(src.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const u8, src_stride: usize, dst: *mut u8, dst_stride: usize) {
        // SAFETY: the token includes that of the floats, whose moves leave bits alone; pointers are
        // the caller's promise, strides are multiples of 4.
        unsafe {
            let s = crate::simd::Avx2::new();
            let (src, dst) = (src.cast::<f32>(), dst.cast::<f32>());
            let (src_stride, dst_stride) = (src_stride / 4, dst_stride / 4);
            for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                let (from, to) = (src.add(i * src_stride + j), dst.add(j * dst_stride + i));
                s.transpose(from, src_stride, to, dst_stride);
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, src: *const u8) {
        // SAFETY: a hint: it reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(src.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut u8, v: B) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            _mm256_storeu_si256(dst.cast(), v[0]);
            _mm256_storeu_si256(dst.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_set1_epi8(byte as i8); 2] }
    }
    #[inline(always)]
    fn select_bits(self, bits: u64, value: u8) -> B {
        // SAFETY: the token proves the instruction set.
        let half = |bits: u32| unsafe {
            // Byte i of the result looks at byte i / 8 of the bits.
            let order = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), order);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            _mm256_and_si256(set, _mm256_set1_epi8(value as i8))
        };
        [half(bits as u32), half((bits >> 32) as u32)]
    }
    #[inline(always)]
    fn or(self, a: B, b: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn xor(self, a: B, b: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn bits<const SHIFT: u32>(self, a: B, mask: u8) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let (mask, count) = (_mm256_set1_epi8(mask as i8), _mm_cvtsi32_si128(SHIFT as i32));
            a.map(|a| _mm256_and_si256(_mm256_srl_epi16(a, count), mask))
        }
    }
    #[inline(always)]
    fn bits_by_run(self, a: B, shifts: [u32; 4], mask: u8) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let [a0, a1, a2, a3] = shifts.map(|s| s as i32);
            let low = _mm256_setr_epi32(a0, a0, a0, a0, a1, a1, a1, a1);
            let high = _mm256_setr_epi32(a2, a2, a2, a2, a3, a3, a3, a3);
            let mask = _mm256_set1_epi8(mask as i8);
            // Bits that cross into a neighbouring byte are masked away.
            let half = |a, counts| _mm256_and_si256(_mm256_srlv_epi32(a, counts), mask);
            [half(a[0], low), half(a[1], high)]
        }
    }
    #[inline(always)]
    fn shl<const SHIFT: u32>(self, a: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { a.map(|a| _mm256_sll_epi16(a, _mm_cvtsi32_si128(SHIFT as i32))) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], a: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            a.map(|a| _mm256_shuffle_epi8(table, a))
        }
    }
    #[inline(always)]
    fn zip_first(self, a: B, b: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_unpacklo_epi8(a[0], b[0]), _mm256_unpacklo_epi8(a[1], b[1])] }
    }
    #[inline(always)]
    fn zip_last(self, a: B, b: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_unpackhi_epi8(a[0], b[0]), _mm256_unpackhi_epi8(a[1], b[1])] }
    }
    #[inline(always)]
    fn deal(self, a: B, b: B) -> (B, B) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let first = [
                _mm256_permute2x128_si256::<0x20>(a[0], a[1]),
                _mm256_permute2x128_si256::<0x20>(b[0], b[1]),
            ];
            let second = [
                _mm256_permute2x128_si256::<0x31>(a[0], a[1]),
                _mm256_permute2x128_si256::<0x31>(b[0], b[1]),
            ];
            (first, second)
        }
    }
    #[inline(always)]
    fn deal_in_turn(self, a: B, b: B) -> (B, B) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let first = [
                _mm256_permute2x128_si256::<0x20>(a[0], b[0]),
                _mm256_permute2x128_si256::<0x20>(a[1], b[1]),
            ];
            let second = [
                _mm256_permute2x128_si256::<0x31>(a[0], b[0]),
                _mm256_permute2x128_si256::<0x31>(a[1], b[1]),
            ];
            (first, second)
        }
    }
    #[inline(always)]
    fn zero_i(self) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn dot(self, acc: B, w: B, x: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [dot_half(acc[0], w[0], x[0]), dot_half(acc[1], w[1], x[1])] }
    }
    #[inline(always)]
    fn dot_signed(self, acc: B, w: B, x: B) -> B {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            // One factor without sign: |w| · (±x).
            let half =
                |i: usize| dot_half(acc[i], _mm256_abs_epi8(w[i]), _mm256_sign_epi8(x[i], w[i]));
            [half(0), half(1)]
        }
    }
    #[inline(always)]
    fn zero(self) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    fn to_f32(self, a: B) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn load_f32(self, src: *const f32) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_loadu_ps(src), _mm256_loadu_ps(src.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f32(self, dst: *mut f32, v: [__m256; 2]) {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            _mm256_storeu_ps(dst, v[0]);
            _mm256_storeu_ps(dst.add(8), v[1]);
        }
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const u8) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let half = |i: usize| _mm256_cvtph_ps(_mm_loadu_si128(src.add(16 * i).cast()));
            [half(0), half(1)]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const u8) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let half = |i: usize| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.add(16 * i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [half(0), half(1)]
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, table: &[f32; 16], src: *const u8) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let bytes = _mm_loadl_epi64(src.cast());
            let index = _mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes);
            let (low, high) =
                (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
            // The permutations look at three bits of an index, the choice between them at the
            // fourth, moved to the sign.
            let half = |index: __m128i| {
                let index = _mm256_cvtepu8_epi32(index);
                let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                let low = _mm256_permutevar8x32_ps(low, index);
                _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(high, index), fourth)
            };
            [half(index), half(_mm_srli_si128::<8>(index))]
        }
    }
    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn spread(self, a: __m128) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let pair =
                |x: __m128, y: __m128| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(x), y);
            [
                pair(_mm_shuffle_ps::<0x00>(a, a), _mm_shuffle_ps::<0x55>(a, a)),
                pair(_mm_shuffle_ps::<0xAA>(a, a), _mm_shuffle_ps::<0xFF>(a, a)),
            ]
        }
    }
    #[inline(always)]
    fn spread_rows(self, [a, b, c, d]: [__m128; 4]) -> [__m256; 2] {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            // A transpose of 4 × 4.
            let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let pair =
                |x: __m128, y: __m128| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(x), y);
            [
                pair(_mm_movelh_ps(ab_low, cd_low), _mm_movehl_ps(cd_low, ab_low)),
                pair(_mm_movelh_ps(ab_high, cd_high), _mm_movehl_ps(cd_high, ab_high)),
            ]
        }
    }
    #[inline(always)]
    fn sum_groups(self, [a, b, c, d]: [B; 4]) -> B {
        // SAFETY: the token proves the instruction set.
        let half = |a, b, c, d| unsafe {
            let pairs =
                |x, y| _mm256_add_epi32(_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
            let (ab, cd) = (pairs(a, b), pairs(c, d));
            _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd))
        };
        [half(a[0], b[0], c[0], d[0]), half(a[1], b[1], c[1], d[1])]
    }
    #[inline(always)]
    fn sum_runs(self, a: [__m256; 2]) -> __m128 {
        // SAFETY: the token proves the instruction set; pointers are the caller's promise.
        unsafe {
            let a = _mm256_add_ps(a[0], a[1]);
            _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a))
        }
    }
    quad_methods!();
}
