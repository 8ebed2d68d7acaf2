//! The vocabulary in plain Rust: the fallback, and what the others are tested against.

use super::Bytes;
use crate::math::f16_to_f32;

/// With `FUSED` multiply-adds round once: for targets where that is one instruction, and where the
/// vectors of floats do so too.
#[derive(Clone, Copy)]
pub(super) struct Scalar<const FUSED: bool>;

type B = [u8; 64];
type I = [i32; 16];
type F = [f32; 16];
type Q = [f32; 4];

#[inline(always)]
fn run(a: &B, i: usize) -> [u8; 16] {
    std::array::from_fn(|k| a[16 * i + k])
}

#[inline(always)]
fn join(runs: [[u8; 16]; 4]) -> B {
    std::array::from_fn(|i| runs[i / 16][i % 16])
}

#[inline(always)]
fn zip(a: &B, b: &B, first: usize) -> B {
    std::array::from_fn(|i| {
        let at = i / 16 * 16 + first + i % 16 / 2;
        if i % 2 == 0 { a[at] } else { b[at] }
    })
}

/// 16 × 16 words of 4 bytes, one by one.
///
/// # Safety
/// Both blocks of 16 rows of 64 bytes are valid.
#[inline(always)]
pub(super) unsafe fn transpose_words(
    src: *const u8,
    src_stride: usize,
    dst: *mut u8,
    dst_stride: usize,
) {
    for i in 0..16 {
        for j in 0..16 {
            // SAFETY: promised by the caller.
            unsafe {
                let word = src.add(i * src_stride + 4 * j).cast::<[u8; 4]>().read_unaligned();
                dst.add(j * dst_stride + 4 * i).cast::<[u8; 4]>().write_unaligned(word);
            }
        }
    }
}

impl<const FUSED: bool> Scalar<FUSED> {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        // Without the instruction `f32::mul_add` is a slow library call.
        if FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

impl<const FUSED: bool> Bytes for Scalar<FUSED> {
    type B = B;
    type I = I;
    type F = F;
    type Q = Q;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn load(self, src: *const u8) -> B {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { src.cast::<B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_runs(self, src: *const u8, stride: usize) -> B {
        // SAFETY: the caller gives four runs of 16 readable bytes.
        join(std::array::from_fn(|i| unsafe {
            src.add(i * stride).cast::<[u8; 16]>().read_unaligned()
        }))
    }
    #[inline(always)]
    unsafe fn load_word(self, src: *const u8) -> B {
        // SAFETY: the caller gives four readable bytes.
        let word = unsafe { src.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| word[i % 4])
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const u8, src_stride: usize, dst: *mut u8, dst_stride: usize) {
        // SAFETY: both blocks of strided rows are the caller's.
        unsafe { transpose_words(src, src_stride, dst, dst_stride) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn store(self, dst: *mut u8, v: B) {
        // SAFETY: the caller gives room for 64 bytes.
        unsafe { dst.cast::<B>().write_unaligned(v) }
    }
    #[inline(always)]
    fn splat(self, byte: u8) -> B {
        [byte; 64]
    }
    #[inline(always)]
    fn select_bits(self, bits: u64, value: u8) -> B {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    fn or(self, a: B, b: B) -> B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn xor(self, a: B, b: B) -> B {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn bits<const SHIFT: u32>(self, a: B, mask: u8) -> B {
        a.map(|a| a >> SHIFT & mask)
    }
    #[inline(always)]
    fn bits_by_run(self, a: B, shifts: [u32; 4], mask: u8) -> B {
        std::array::from_fn(|i| a[i] >> shifts[i / 16] & mask)
    }
    #[inline(always)]
    fn shl<const SHIFT: u32>(self, a: B) -> B {
        a.map(|a| a << SHIFT)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], a: B) -> B {
        a.map(|a| table[usize::from(a & 15)])
    }
    #[inline(always)]
    fn zip_first(self, a: B, b: B) -> B {
        zip(&a, &b, 0)
    }
    #[inline(always)]
    fn zip_last(self, a: B, b: B) -> B {
        zip(&a, &b, 8)
    }
    #[inline(always)]
    fn deal(self, a: B, b: B) -> (B, B) {
        let of = |i| join([run(&a, i), run(&a, i + 2), run(&b, i), run(&b, i + 2)]);
        (of(0), of(1))
    }
    #[inline(always)]
    fn deal_in_turn(self, a: B, b: B) -> (B, B) {
        let of = |i| join([run(&a, i), run(&b, i), run(&a, i + 2), run(&b, i + 2)]);
        (of(0), of(1))
    }
    #[inline(always)]
    fn zero_i(self) -> I {
        [0; 16]
    }
    #[inline(always)]
    fn dot(self, acc: I, w: B, x: B) -> I {
        let product = |i: usize| i32::from(w[i]) * i32::from(x[i] as i8);
        std::array::from_fn(|i| acc[i] + (0..4).map(|k| product(4 * i + k)).sum::<i32>())
    }
    #[inline(always)]
    fn dot_signed(self, acc: I, w: B, x: B) -> I {
        let product = |i: usize| i32::from(w[i] as i8) * i32::from(x[i] as i8);
        std::array::from_fn(|i| acc[i] + (0..4).map(|k| product(4 * i + k)).sum::<i32>())
    }
    #[inline(always)]
    fn zero(self) -> F {
        [0.0; 16]
    }
    #[inline(always)]
    fn to_f32(self, a: I) -> F {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| self.multiply_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn load_f32(self, src: *const f32) -> F {
        // SAFETY: the caller gives 16 readable floats.
        unsafe { src.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f32(self, dst: *mut f32, v: F) {
        // SAFETY: the caller gives room for 16 floats.
        unsafe { dst.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> F {
        [x; 16]
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const u8) -> F {
        // SAFETY: the caller gives 16 readable values.
        let halves = unsafe { src.cast::<[[u8; 2]; 16]>().read_unaligned() };
        halves.map(|h| f16_to_f32(u16::from_le_bytes(h)))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, src: *const u8) -> F {
        // SAFETY: the caller gives 16 readable values.
        let halves = unsafe { src.cast::<[[u8; 2]; 16]>().read_unaligned() };
        halves.map(|h| f32::from_bits(u32::from(u16::from_le_bytes(h)) << 16))
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, table: &[f32; 16], src: *const u8) -> F {
        // SAFETY: the caller gives 8 readable bytes.
        let bytes = unsafe { src.cast::<[u8; 8]>().read_unaligned() };
        std::array::from_fn(|i| table[usize::from(bytes[i / 2] >> (4 - i % 2 * 4) & 15)])
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn spread(self, a: Q) -> F {
        std::array::from_fn(|i| a[i / 4])
    }
    #[inline(always)]
    fn spread_rows(self, rows: [Q; 4]) -> F {
        std::array::from_fn(|i| rows[i % 4][i / 4])
    }
    #[inline(always)]
    fn sum_groups(self, rows: [I; 4]) -> I {
        std::array::from_fn(|i| rows[i % 4][i / 4 * 4..][..4].iter().sum())
    }
    #[inline(always)]
    fn sum_runs(self, a: F) -> Q {
        std::array::from_fn(|r| (a[r] + a[8 + r]) + (a[4 + r] + a[12 + r]))
    }
    #[inline(always)]
    fn q(self, a: [f32; 4]) -> Q {
        a
    }
    #[inline(always)]
    unsafe fn q_load(self, src: *const f32) -> Q {
        // SAFETY: the caller gives 4 readable floats.
        unsafe { src.cast::<Q>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn q_f16(self, src: *const u8, stride: usize) -> Q {
        std::array::from_fn(|i| {
            // SAFETY: the caller gives four readable values.
            let bytes = unsafe { src.add(i * stride).cast::<[u8; 2]>().read_unaligned() };
            f16_to_f32(u16::from_le_bytes(bytes))
        })
    }
    #[inline(always)]
    unsafe fn q_f16_splat(self, src: *const u8) -> Q {
        // SAFETY: the caller gives a readable value.
        let bytes = unsafe { src.cast::<[u8; 2]>().read_unaligned() };
        [f16_to_f32(u16::from_le_bytes(bytes)); 4]
    }
    #[inline(always)]
    fn q_u8(self, a: u32) -> Q {
        a.to_le_bytes().map(f32::from)
    }
    #[inline(always)]
    fn q_u16(self, a: u64) -> Q {
        std::array::from_fn(|i| f32::from((a >> (16 * i)) as u16))
    }
    #[inline(always)]
    fn q_mul(self, a: Q, b: Q) -> Q {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn q_fma(self, a: Q, b: Q, c: Q) -> Q {
        std::array::from_fn(|i| self.multiply_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn q_keep(self, a: Q, n: usize) -> Q {
        std::array::from_fn(|i| if i < n { a[i] } else { 0.0 })
    }
    #[inline(always)]
    fn q_array(self, a: Q) -> [f32; 4] {
        a
    }
}
