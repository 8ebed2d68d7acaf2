//! Tiles in AMX's registers.
//!
//! ```text
//!              tmm6   tmm7      right tiles
//! tmm4         tmm0   tmm1      sums: 2 × 2 tiles of 16 × 16 floats
//! tmm5         tmm2   tmm3
//! left tiles
//! ```
//!
//! Four products of 16 cycles need four tile loads of 8 cycles, which run beside them: as long as
//! tiles come from the nearest caches, products set the pace.
//!
//! The compiler has no stable intrinsics for AMX, so this is inline assembly. The system call that
//! asks Linux for the registers' state is made once per process
//! (<https://docs.kernel.org/arch/x86/xstate.html>).

use std::arch::asm;
use std::sync::OnceLock;

use super::Block;

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether the processor has AMX for bf16, and the operating system lets this process use it.
pub(super) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| has_instructions() && ask_for_state())
}

fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

#[cfg(target_os = "linux")]
fn ask_for_state() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: the call changes nothing but which registers this process may use.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_for_state() -> bool {
    false
}

/// # Safety
/// AMX is available.
pub(super) unsafe fn configure() {
    // SAFETY: promised by the caller.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack)) };
}

/// # Safety
/// AMX is available.
pub(super) unsafe fn release() {
    // SAFETY: promised by the caller.
    unsafe { asm!("tilerelease", options(nostack)) };
}

/// # Safety
/// As [`super::Worker::multiply`], on a configured thread.
#[inline]
pub(super) unsafe fn multiply(block: &Block) {
    // SAFETY: promised by the caller.
    unsafe {
        match block.a1 {
            Some(a1) => two_rows(block, a1),
            None => one_row(block),
        }
    }
}

/// 32 rows.
///
/// # Safety
/// As [`multiply`].
#[inline]
unsafe fn two_rows(block: &Block, a1: *const u16) {
    let &Block { a0, b, n, from, from_stride, to, to_stride, .. } = block;
    // SAFETY: promised by the caller.
    unsafe {
        asm!(
            "tileloadd tmm0, [{from} + {from_stride}]",
            "tileloadd tmm1, [{from} + {from_stride} + 64]",
            "tileloadd tmm2, [{from1} + {from_stride}]",
            "tileloadd tmm3, [{from1} + {from_stride} + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{to} + {to_stride}], tmm0",
            "tilestored [{to} + {to_stride} + 64], tmm1",
            "tilestored [{to1} + {to_stride}], tmm2",
            "tilestored [{to1} + {to_stride} + 64], tmm3",
            a0 = inout(reg) a0 => _,
            a1 = inout(reg) a1 => _,
            b = inout(reg) b => _,
            n = inout(reg) n => _,
            row = in(reg) 64usize,
            from = in(reg) from,
            from1 = in(reg) from.wrapping_add(16 * from_stride),
            from_stride = in(reg) 4 * from_stride,
            to = in(reg) to,
            to1 = in(reg) to.wrapping_add(16 * to_stride),
            to_stride = in(reg) 4 * to_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows.
///
/// # Safety
/// As [`multiply`].
#[inline]
unsafe fn one_row(block: &Block) {
    let &Block { a0, b, n, from, from_stride, to, to_stride, .. } = block;
    // SAFETY: promised by the caller.
    unsafe {
        asm!(
            "tileloadd tmm0, [{from} + {from_stride}]",
            "tileloadd tmm1, [{from} + {from_stride} + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a0}, 1024",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "tilestored [{to} + {to_stride}], tmm0",
            "tilestored [{to} + {to_stride} + 64], tmm1",
            a0 = inout(reg) a0 => _,
            b = inout(reg) b => _,
            n = inout(reg) n => _,
            row = in(reg) 64usize,
            from = in(reg) from,
            from_stride = in(reg) 4 * from_stride,
            to = in(reg) to,
            to_stride = in(reg) 4 * to_stride,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
