//! Products of tiles of bf16 numbers with sums in f32, one implementation per instruction set.
//!
//! ```text
//! left tile    16 rows × 32 steps     row by row                      1 KiB
//! right tile   32 steps × 16 columns  two steps side by side          1 KiB
//!
//! left   row 0:   a[0][0] a[0][1] … a[0][31]        row 1: …
//! right  steps 0 and 1:  b[0][0] b[1][0]  b[0][1] b[1][1]  …          steps 2 and 3: …
//! ```
//!
//! All instructions for bf16 multiply *pairs* of neighbouring steps: a 32-bit word of the left tile
//! and one of the right tile hold the same two steps. So one layout serves AMX, AVX-512 BF16 and
//! plain code. `bfmmla` takes two pairs at once, which it finds one after the other.
//!
//! The order of additions along the steps is fixed for each instruction set. It differs between
//! them, as the instructions round differently; so do their results, in the last bits of f32.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod bfmmla;
mod plain;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{Error, Result};

/// Rows of a left tile and columns of a right tile.
pub const SIDE: usize = 16;
/// Steps of a tile along the sum.
pub const STEPS: usize = 32;
/// Numbers of a tile.
pub const TILE: usize = SIDE * STEPS;
/// Columns of C computed together: two right tiles.
pub const WIDE: usize = 2 * SIDE;

/// The instructions that multiply bf16 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TileIsa {
    /// Conversions to f32 and multiply-adds, for any processor: slower than products in f32.
    Plain = 1,
    /// `vdpbf16ps` on 512-bit vectors (AVX512-BF16).
    Avx512Bf16 = 2,
    /// `tdpbf16ps` on tiles of 1 KiB (AMX-BF16).
    Amx = 3,
    /// `bfmmla` on 128-bit vectors (ARMv8.6 BF16).
    Bfmmla = 4,
}

impl TileIsa {
    /// Whether products are faster than in f32 on this processor.
    ///
    /// `bfmmla` makes four times as many multiply-adds as one in f32 does. No ARM processor was
    /// measured.
    ///
    /// AMX multiplies 16 times as many numbers per cycle as multiply-adds in f32 do, AVX512-BF16
    /// twice as many on AMD's processors, and half as many on Intel's (docs/experiments.md).
    #[must_use]
    pub fn is_fast(self) -> bool {
        match self {
            Self::Plain => false,
            Self::Avx512Bf16 => is_amd(),
            Self::Amx | Self::Bfmmla => true,
        }
    }
}

impl fmt::Display for TileIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            Self::Bfmmla => "bfmmla",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

/// The instruction sets for bf16 this processor and its operating system offer.
#[must_use]
pub fn available() -> Vec<TileIsa> {
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
    let mut isas = vec![TileIsa::Plain];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") {
            isas.push(TileIsa::Avx512Bf16);
        }
        if amx::is_available() {
            isas.push(TileIsa::Amx);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("bf16") {
        isas.push(TileIsa::Bfmmla);
    }
    isas
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instructions in force: the best ones, or what [`set`] or the environment variable
/// `LEHR_BF16` (plain, avx512bf16, amx, bfmmla) asked for. AVX512-BF16 is passed over where it is
/// slower than plain code.
#[must_use]
pub fn chosen() -> TileIsa {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => TileIsa::Plain,
        2 => TileIsa::Avx512Bf16,
        3 => TileIsa::Amx,
        4 => TileIsa::Bfmmla,
        _ => {
            let available = available();
            let asked = std::env::var("LEHR_BF16").ok();
            let named = available.iter().find(|i| asked.as_deref() == Some(&i.to_string()));
            let best = available.last().copied().unwrap_or(TileIsa::Plain);
            let isa = named.copied().unwrap_or(best);
            CHOSEN.store(isa as u8, Ordering::Relaxed);
            isa
        }
    }
}

/// Makes all following products of bf16 numbers run with `isa`.
///
/// # Errors
/// If the processor lacks it.
pub fn set(isa: TileIsa) -> Result<()> {
    let available = available();
    if !available.contains(&isa) {
        let names: Vec<_> = available.iter().map(ToString::to_string).collect();
        return Err(Error::Isa { asked: isa.to_string(), available: names.join(", ") });
    }
    CHOSEN.store(isa as u8, Ordering::Relaxed);
    Ok(())
}

/// One block of C: 16 or 32 rows times 32 columns.
#[derive(Clone, Copy)]
pub struct Block {
    /// Left tiles of the first 16 rows, one after the other along the steps.
    pub a0: *const u16,
    /// Left tiles of the next 16 rows, if there are any.
    pub a1: Option<*const u16>,
    /// Pairs of right tiles, one pair after the other along the steps.
    pub b: *const u16,
    /// Number of tiles along the steps, at least 1.
    pub n: usize,
    /// The numbers that the sums start from: rows `from_stride` floats apart; 0 = one row for all.
    pub from: *const f32,
    /// Distance of the rows of `from`.
    pub from_stride: usize,
    /// The result. It may be `from`.
    pub to: *mut f32,
    /// Distance of the rows of `to`.
    pub to_stride: usize,
}

/// A thread that multiplies tiles. AMX has a state, which is set up here and given up at the end.
pub struct Worker {
    isa: TileIsa,
}

impl Worker {
    /// Prepares this thread.
    #[must_use]
    pub fn new(isa: TileIsa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa == TileIsa::Amx {
            // SAFETY: `available` found AMX and was granted its state.
            unsafe { amx::configure() };
        }
        Self { isa }
    }

    /// Computes one block.
    ///
    /// # Safety
    /// The tiles are readable, 16 or 32 rows of 32 floats of `from` are readable, and those of `to`
    /// are writable and no other thread's.
    #[inline]
    pub unsafe fn multiply(&self, block: &Block) {
        // SAFETY: promised by the caller; the instruction set was detected.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                TileIsa::Amx => amx::multiply(block),
                #[cfg(target_arch = "x86_64")]
                TileIsa::Avx512Bf16 => avx512::multiply(block),
                #[cfg(target_arch = "aarch64")]
                TileIsa::Bfmmla => bfmmla::multiply(block),
                _ => plain::multiply(block),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.isa == TileIsa::Amx {
            // SAFETY: as in `new`.
            unsafe { amx::release() };
        }
    }
}

#[cfg(test)]
mod tests;
