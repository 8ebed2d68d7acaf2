//! The vocabulary of products of few-bit integers: 64 bytes, 16 sums and 16 floats at a time.
//!
//! Unlike [`Simd`](super::Simd) its width is the same for every instruction set, so that a format
//! is taken apart in one way. The order of additions is the same too; only scalar code, which has
//! no fused multiply-add on x86, rounds differently. Multiply-adds are fused exactly where those of
//! [`Simd`](super::Simd) are, so that both give the same bits for one order of additions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod quad;
mod scalar;

#[cfg(target_arch = "x86_64")]
use super::Isa;
use super::isa;

/// Vectors of 64 bytes `B`, of 16 integers `I`, of 16 floats `F` and of 4 floats `Q`. A value of an
/// implementing type is proof that the processor has the instruction set.
///
/// The bytes are thought of as four runs of 16.
///
/// # Safety of the pointer methods
/// The named range must be valid for the access; no alignment is needed.
#[expect(clippy::missing_safety_doc, reason = "one section above covers all pointer methods")]
pub trait Bytes: Copy + Send + Sync + 'static {
    /// 64 bytes.
    type B: Copy;
    /// 16 integers.
    type I: Copy;
    /// 16 floats.
    type F: Copy;
    /// 4 floats.
    type Q: Copy;
    /// Whether sums of two products of bytes have 32 bits; else 16.
    const WIDE: bool;

    /// 64 bytes.
    unsafe fn load(self, src: *const u8) -> Self::B;
    /// Four runs of 16 bytes, `stride` apart.
    unsafe fn load_runs(self, src: *const u8, stride: usize) -> Self::B;
    /// 4 bytes, 16 times.
    unsafe fn load_word(self, src: *const u8) -> Self::B;
    /// Writes 64 bytes.
    unsafe fn store(self, dst: *mut u8, v: Self::B);
    /// Asks for the cache line at `src`, which need not be valid.
    fn prefetch(self, src: *const u8);
    /// Transposes 16 rows of 16 words of 4 bytes; strides in bytes.
    unsafe fn transpose(self, src: *const u8, src_stride: usize, dst: *mut u8, dst_stride: usize);
    /// Sets all bytes to `byte`.
    fn splat(self, byte: u8) -> Self::B;
    /// `value` where the bit of `bits` is set, else 0.
    fn select_bits(self, bits: u64, value: u8) -> Self::B;
    /// `a | b`.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a ^ b`.
    fn xor(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a >> SHIFT & mask`, byte by byte; the mask keeps only bits that stay within a byte.
    fn bits<const SHIFT: u32>(self, a: Self::B, mask: u8) -> Self::B;
    /// `a >> shift & mask` with another shift for each run.
    fn bits_by_run(self, a: Self::B, shifts: [u32; 4], mask: u8) -> Self::B;
    /// `a << SHIFT` for bytes below `2^(8 - SHIFT)`.
    fn shl<const SHIFT: u32>(self, a: Self::B) -> Self::B;
    /// `table[a]` for bytes below 16.
    fn lookup(self, table: &[u8; 16], a: Self::B) -> Self::B;
    /// In each run: the first eight bytes of `a` and `b` in turn.
    fn zip_first(self, a: Self::B, b: Self::B) -> Self::B;
    /// In each run: the last eight bytes of `a` and `b` in turn.
    fn zip_last(self, a: Self::B, b: Self::B) -> Self::B;
    /// Runs `a0 a2 b0 b2` and `a1 a3 b1 b3`.
    fn deal(self, a: Self::B, b: Self::B) -> (Self::B, Self::B);
    /// Runs `a0 b0 a2 b2` and `a1 b1 a3 b3`.
    fn deal_in_turn(self, a: Self::B, b: Self::B) -> (Self::B, Self::B);

    /// 16 zeros.
    fn zero_i(self) -> Self::I;
    /// `acc[i] + Σ w[4i + k] x[4i + k]` over k below 4, for unsigned `w` below 128 and signed `x`
    /// above −128. With [`Bytes::WIDE`] all unsigned `w` will do.
    fn dot(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// The same for signed `w`.
    fn dot_signed(self, acc: Self::I, w: Self::B, x: Self::B) -> Self::I;

    /// 16 zeros.
    fn zero(self) -> Self::F;
    /// The same numbers as floats.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// 16 floats.
    unsafe fn load_f32(self, src: *const f32) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store_f32(self, dst: *mut f32, v: Self::F);
    /// Sets all lanes to `x`.
    fn splat_f32(self, x: f32) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// 16 f16 values.
    unsafe fn load_f16(self, src: *const u8) -> Self::F;
    /// 16 bfloat16 values.
    unsafe fn load_bf16(self, src: *const u8) -> Self::F;
    /// 16 numbers of a table, by the nibbles of 8 bytes, the upper one first.
    unsafe fn load_nibbles(self, table: &[f32; 16], src: *const u8) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane `i` of the four for lanes `4i..4i + 4`.
    fn spread(self, a: Self::Q) -> Self::F;
    /// Lane `4i + r` is lane `i` of `rows[r]`.
    fn spread_rows(self, rows: [Self::Q; 4]) -> Self::F;
    /// Lane `4i + r` is the sum of the lanes `4i..4i + 4` of `rows[r]`.
    fn sum_groups(self, rows: [Self::I; 4]) -> Self::I;
    /// Lane `r` is `(a[r] + a[8 + r]) + (a[4 + r] + a[12 + r])`.
    fn sum_runs(self, a: Self::F) -> Self::Q;

    /// The four numbers as a vector.
    fn q(self, a: [f32; 4]) -> Self::Q;
    /// Reads 4 floats.
    unsafe fn q_load(self, src: *const f32) -> Self::Q;
    /// Four f16 values, `stride` bytes apart.
    unsafe fn q_f16(self, src: *const u8, stride: usize) -> Self::Q;
    /// One f16 value, four times.
    unsafe fn q_f16_splat(self, src: *const u8) -> Self::Q;
    /// The four bytes of `a`, the lowest first.
    fn q_u8(self, a: u32) -> Self::Q;
    /// The four words of 16 bits of `a`, the lowest first.
    fn q_u16(self, a: u64) -> Self::Q;
    /// `a * b`.
    fn q_mul(self, a: Self::Q, b: Self::Q) -> Self::Q;
    /// `a * b + c`.
    fn q_fma(self, a: Self::Q, b: Self::Q, c: Self::Q) -> Self::Q;
    /// The first `n` lanes, and 0.
    fn q_keep(self, a: Self::Q, n: usize) -> Self::Q;
    /// The lanes as an array.
    fn q_array(self, a: Self::Q) -> [f32; 4];
}

/// A computation written once for all instruction sets. Implementations of `run` must be
/// `#[inline(always)]`, or else the vectors inside are compiled without their instructions.
pub trait BytesKernel {
    /// What it computes.
    type Out;
    /// Computes it with the vectors of `s`.
    fn run<S: Bytes>(self, s: S) -> Self::Out;
}

/// Whether [`dispatch_bytes`] chooses an instruction set with products of bytes into 32 bits, which
/// are several times as fast as products of floats.
pub fn has_wide_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() == Isa::Avx512 && has_vnni();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("f16c")
}

/// Runs `kernel` with the instruction set in force, or the next lower one that has products of
/// bytes.
#[inline]
pub fn dispatch_bytes<K: BytesKernel>(kernel: K) -> K::Out {
    match isa() {
        // SAFETY: `isa` names only instruction sets that were detected, and so are the rest.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if has_vnni() => unsafe { run_avx512(kernel) },
        // SAFETY: as above; AVX-512 includes AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 if is_x86_feature_detected!("f16c") => unsafe { run_avx2(kernel) },
        // NEON fuses multiply-adds elsewhere; plain code beside it does the same, with the same
        // bits.
        #[cfg(target_arch = "aarch64")]
        super::Isa::Neon => kernel.run(scalar::Scalar::<true>),
        _ => kernel.run(scalar::Scalar::<false>),
    }
}

/// # Safety
/// The processor has AVX-512 F, DQ, BW, VL and VNNI, and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn run_avx512<K: BytesKernel>(kernel: K) -> K::Out {
    // SAFETY: promised by the caller.
    kernel.run(unsafe { avx512::Avx512Vnni::new() })
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: BytesKernel>(kernel: K) -> K::Out {
    // SAFETY: promised by the caller.
    kernel.run(unsafe { avx2::Avx2Bytes::new() })
}

#[cfg(test)]
mod tests;
