//! One small vector vocabulary with an implementation per instruction set.
//!
//! A kernel is written once against [`Simd`] as a [`Kernel`] and compiled for every instruction
//! set of the target; [`dispatch`] picks one at run time. Intrinsics appear only in this folder.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod bytes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
pub mod tile16;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;

use crate::{Error, Result};

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust, four numbers at a time.
    Scalar = 1,
    /// 256-bit vectors with fused multiply-add.
    Avx2 = 2,
    /// 512-bit vectors.
    Avx512 = 3,
    /// 128-bit vectors of 64-bit ARM.
    Neon = 4,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        })
    }
}

/// The instruction sets this processor offers, slowest first.
#[must_use]
pub fn available_isas() -> Vec<Isa> {
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
    let mut isas = vec![Isa::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            isas.push(Isa::Avx2);
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                isas.push(Isa::Avx512);
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    isas.push(Isa::Neon);
    isas
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instruction set kernels run with now: the best one, or what [`set_isa`] or the
/// environment variable `LEHR_ISA` (scalar, avx2, avx512, neon) asked for.
#[must_use]
pub fn isa() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Isa::Scalar,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        4 => Isa::Neon,
        _ => {
            let available = available_isas();
            let asked = std::env::var("LEHR_ISA").ok();
            let named = available.iter().find(|i| asked.as_deref() == Some(&i.to_string()));
            let best = available.last().copied().unwrap_or(Isa::Scalar);
            let chosen = named.copied().unwrap_or(best);
            CHOSEN.store(chosen as u8, Ordering::Relaxed);
            chosen
        }
    }
}

/// Makes all following kernels run with `isa`.
///
/// # Errors
/// If the processor lacks it.
pub fn set_isa(isa: Isa) -> Result<()> {
    let available = available_isas();
    if !available.contains(&isa) {
        let names: Vec<_> = available.iter().map(ToString::to_string).collect();
        return Err(Error::Isa { asked: isa.to_string(), available: names.join(", ") });
    }
    CHOSEN.store(isa as u8, Ordering::Relaxed);
    Ok(())
}

/// Vectors of `LANES` floats and what kernels do with them. A value of an implementing type is
/// proof that the processor has the instruction set.
///
/// # Safety of the pointer methods
/// The named range must be valid for the access; no alignment is needed.
#[expect(clippy::missing_safety_doc, reason = "one section above covers all pointer methods")]
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector of floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;

    /// Sets all lanes to `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Asks for the cache line at `at`, which will be needed soon. Any address will do.
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        let _ = at;
    }
    /// Reads `LANES` floats.
    unsafe fn load(self, src: *const f32) -> Self::V;
    /// Writes `LANES` floats.
    unsafe fn store(self, dst: *mut f32, v: Self::V);
    /// Reads `n <= LANES` floats, the other lanes are 0.
    unsafe fn load_n(self, src: *const f32, n: usize) -> Self::V;
    /// Writes the first `n <= LANES` lanes.
    unsafe fn store_n(self, dst: *mut f32, v: Self::V, n: usize);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// Per lane the larger. If `b` is not a number, neither is the result.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Per lane the smaller. If `b` is not a number, neither is the result.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in −126 to 127.
    fn pow2(self, a: Self::V) -> Self::V;
    /// Per lane `a > b ? x : y`.
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane.
    fn hmax(self, a: Self::V) -> f32;
    /// Transposes a `LANES × LANES` block; strides in floats.
    unsafe fn transpose(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);
    /// Rounds 32 floats times `factor` to bf16 and writes them one after the other, in 16 words.
    #[inline(always)]
    unsafe fn round_row(self, src: *const f32, factor: f32, dst: *mut u32) {
        for i in 0..16 {
            // SAFETY: the caller's promise.
            unsafe {
                let (first, second) = (*src.add(2 * i) * factor, *src.add(2 * i + 1) * factor);
                *dst.add(i) = bf16_word(first, second);
            }
        }
    }
    /// Rounds 16 floats of each of two rows, times `factor`, to bf16. A word has one of the first
    /// row in its lower half and that below it in its upper half.
    #[inline(always)]
    unsafe fn round_rows(self, rows: [*const f32; 2], factor: f32, dst: *mut u32) {
        for i in 0..16 {
            // SAFETY: the caller's promise.
            unsafe {
                let (first, second) = (*rows[0].add(i) * factor, *rows[1].add(i) * factor);
                *dst.add(i) = bf16_word(first, second);
            }
        }
    }
}

/// Two numbers rounded to bf16 (to nearest, ties to even) as a word, the first in its lower half.
#[inline(always)]
fn bf16_word(first: f32, second: f32) -> u32 {
    let round = |x: f32| {
        let bits = x.to_bits();
        // Rounding could turn a NaN into infinity; its quiet bit stays instead.
        match x.is_nan() {
            true => bits | 0x0040_0000,
            false => bits.wrapping_add(0x7FFF + (bits >> 16 & 1)),
        }
    };
    round(first) >> 16 | round(second) & 0xFFFF_0000
}

/// A computation written once for all instruction sets. Implementations of `run` must be
/// `#[inline(always)]`, or else the vectors inside are compiled without their instructions. They
/// loop over vectors with `for`: an iterator's closure (`map`, `sum`, `array::from_fn`) may be
/// compiled by itself, and then each instruction is a call.
pub trait Kernel {
    /// What it computes.
    type Out;
    /// Computes it with the vectors of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs `kernel` with the instruction set in force.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    dispatch_on(isa(), kernel)
}

/// Runs `kernel` with `isa`, for parts that must agree on the width of a vector.
///
/// # Panics
/// If the target has no such instruction set; `isa()` never gives one.
#[inline]
pub fn dispatch_on<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa {
        Isa::Scalar => kernel.run(Scalar),
        // SAFETY: `isa` and `set_isa` only name instruction sets that were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: NEON is part of every 64-bit ARM.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { run_neon(kernel) },
        #[allow(unreachable_patterns, reason = "reachable on targets that lack an arm above")]
        other => unreachable!("{other} is not an instruction set of this target"),
    }
}

/// # Safety
/// The processor has AVX-512 F and DQ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: promised by the caller.
    kernel.run(unsafe { Avx512::new() })
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: promised by the caller.
    kernel.run(unsafe { Avx2::new() })
}

/// # Safety
/// The processor has NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: promised by the caller.
    kernel.run(unsafe { Neon::new() })
}
