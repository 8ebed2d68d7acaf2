//! Formats taken apart for integer products: 128 numbers of a row at a time.

use lehr_kernels::simd::bytes::Bytes;

use crate::quant::IQ4;

/// 128 numbers in four groups of 32: `scale · code + offset` with a scale and an offset for each
/// group, or for each half of a group.
pub(super) struct Terms<S: Bytes> {
    /// Codes of the first 16 numbers of each group.
    pub(super) first: S::B,
    /// Codes of the last 16.
    pub(super) second: S::B,
    pub(super) scale: S::Q,
    pub(super) offset: S::Q,
    /// Of the second halves, where [`Stored::HALVES`].
    pub(super) scale_second: S::Q,
    pub(super) offset_second: S::Q,
}

/// A format whose codes are integers of at most 8 bits.
pub(super) trait Stored: Copy + Send + Sync {
    /// Whether codes are signed; else they are below 128. Such a format has neither halves nor
    /// offsets.
    const SIGNED: bool = false;
    /// Whether the halves of a group have scales of their own.
    const HALVES: bool = false;
    /// Whether numbers have an offset; without, that of [`Terms`] is not used.
    const OFFSET: bool = true;

    /// Bytes read for a row of that many quads.
    fn bytes_read(self, n_quads: usize) -> usize;

    /// Reads quad `quad` of the row at `row`. The first `n` groups are part of the row; the scales
    /// of the others are 0. `scales` are those of the row that lie apart from the codes.
    ///
    /// # Safety
    /// [`Stored::bytes_read`] bytes can be read at `row`, `n` groups have their scales.
    unsafe fn quad<S: Bytes>(
        self,
        s: S,
        row: *const u8,
        scales: *const f32,
        quad: usize,
        n: usize,
    ) -> Terms<S>;
}

/// Terms of a format whose halves share scale and offset.
#[inline(always)]
pub(super) fn terms<S: Bytes>(
    s: S,
    n: usize,
    (first, second): (S::B, S::B),
    scale: S::Q,
    offset: S::Q,
) -> Terms<S> {
    let (scale, offset) = (s.q_keep(scale, n), s.q_keep(offset, n));
    Terms { first, second, scale, offset, scale_second: scale, offset_second: offset }
}

/// The low nibbles of four runs are the first halves of their groups, the high ones the second.
#[inline(always)]
fn nibbles<S: Bytes>(s: S, v: S::B) -> (S::B, S::B) {
    (s.bits::<0>(v, 15), s.bits::<4>(v, 15))
}

#[inline(always)]
fn times<S: Bytes>(s: S, a: S::Q, factor: f32) -> S::Q {
    s.q_mul(a, s.q([factor; 4]))
}

/// Fifth bits of four groups, 32 bits each, `stride` bytes apart.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn fifth_bits<S: Bytes>(s: S, src: *const u8, stride: usize) -> (S::B, S::B) {
    let (mut first, mut second) = (0, 0);
    for i in 0..4 {
        // SAFETY: promised by the caller.
        let word = unsafe { src.add(i * stride).cast::<[u8; 4]>().read_unaligned() };
        let word = u64::from(u32::from_le_bytes(word));
        first |= (word & 0xFFFF) << (16 * i);
        second |= (word >> 16) << (16 * i);
    }
    (s.select_bits(first, 16), s.select_bits(second, 16))
}

#[inline(always)]
fn either<S: Bytes>(s: S, a: (S::B, S::B), b: (S::B, S::B)) -> (S::B, S::B) {
    (s.or(a.0, b.0), s.or(a.1, b.1))
}

#[inline(always)]
fn iq4<S: Bytes>(s: S, codes: (S::B, S::B)) -> (S::B, S::B) {
    let table = IQ4.map(|v| v as u8);
    (s.lookup(&table, codes.0), s.lookup(&table, codes.1))
}

macro_rules! block32 {
    ($name:ident, $bytes:literal, { $($consts:tt)* }, |$s:ident, $p:ident, $n:ident| $body:expr) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Stored for $name {
            $($consts)*

            #[inline(always)]
            fn bytes_read(self, n_quads: usize) -> usize {
                4 * $bytes * n_quads
            }

            #[inline(always)]
            unsafe fn quad<S: Bytes>(
                self,
                $s: S,
                row: *const u8,
                _: *const f32,
                quad: usize,
                $n: usize,
            ) -> Terms<S> {
                // SAFETY: the four blocks can be read, as promised by the caller.
                unsafe {
                    let $p = row.add(quad * 4 * $bytes);
                    $body
                }
            }
        }
    };
}

block32!(Q4_0, 18, {}, |s, p, n| {
    let scale = s.q_f16(p, 18);
    terms(s, n, nibbles(s, s.load_runs(p.add(2), 18)), scale, times(s, scale, -8.0))
});

block32!(Q4_1, 20, {}, |s, p, n| {
    let codes = nibbles(s, s.load_runs(p.add(4), 20));
    terms(s, n, codes, s.q_f16(p, 20), s.q_f16(p.add(2), 20))
});

block32!(Q5_0, 22, {}, |s, p, n| {
    let scale = s.q_f16(p, 22);
    let codes = nibbles(s, s.load_runs(p.add(6), 22));
    let codes = either(s, codes, fifth_bits(s, p.add(2), 22));
    terms(s, n, codes, scale, times(s, scale, -16.0))
});

block32!(Q5_1, 24, {}, |s, p, n| {
    let codes = nibbles(s, s.load_runs(p.add(8), 24));
    let codes = either(s, codes, fifth_bits(s, p.add(4), 24));
    terms(s, n, codes, s.q_f16(p, 24), s.q_f16(p.add(2), 24))
});

block32!(
    Q8_0,
    34,
    {
        const SIGNED: bool = true;
        const OFFSET: bool = false;
    },
    |s, p, n| {
        let codes = (s.load_runs(p.add(2), 34), s.load_runs(p.add(18), 34));
        let scale = s.q_f16(p, 34);
        terms(s, n, codes, scale, scale)
    }
);

block32!(
    Iq4Nl,
    18,
    {
        const SIGNED: bool = true;
        const OFFSET: bool = false;
    },
    |s, p, n| {
        let codes = iq4(s, nibbles(s, s.load_runs(p.add(2), 18)));
        let scale = s.q_f16(p, 18);
        terms(s, n, codes, scale, scale)
    }
);

/// Signed bytes with scales apart; group `i` of 32 has scale `i >> shift`.
#[derive(Clone, Copy)]
pub(super) struct Int8 {
    pub(super) shift: u32,
}

/// Signed nibbles with scales apart, two columns to a byte.
#[derive(Clone, Copy)]
pub(super) struct Int4 {
    pub(super) shift: u32,
}

/// The scales of a quad's groups.
///
/// # Safety
/// The first `n` can be read.
#[inline(always)]
unsafe fn scales_apart<S: Bytes>(
    s: S,
    scales: *const f32,
    quad: usize,
    n: usize,
    shift: u32,
) -> S::Q {
    // SAFETY: group `quad * 4 + i` is part of the row for i below n.
    s.q(std::array::from_fn(|i| unsafe { *scales.add((quad * 4 + i.min(n - 1)) >> shift) }))
}

impl Stored for Int8 {
    const SIGNED: bool = true;
    const OFFSET: bool = false;

    #[inline(always)]
    fn bytes_read(self, n_quads: usize) -> usize {
        128 * n_quads
    }

    #[inline(always)]
    unsafe fn quad<S: Bytes>(
        self,
        s: S,
        row: *const u8,
        scales: *const f32,
        quad: usize,
        n: usize,
    ) -> Terms<S> {
        // SAFETY: promised by the caller.
        unsafe {
            let p = row.add(quad * 128);
            let scale = scales_apart(s, scales, quad, n, self.shift);
            terms(s, n, s.deal(s.load(p), s.load(p.add(64))), scale, scale)
        }
    }
}

impl Stored for Int4 {
    #[inline(always)]
    fn bytes_read(self, n_quads: usize) -> usize {
        64 * n_quads
    }

    #[inline(always)]
    unsafe fn quad<S: Bytes>(
        self,
        s: S,
        row: *const u8,
        scales: *const f32,
        quad: usize,
        n: usize,
    ) -> Terms<S> {
        // SAFETY: promised by the caller.
        unsafe {
            let v = s.load(row.add(quad * 64));
            // Two's complement with the sign bit flipped is the number plus 8.
            let v = s.xor(v, s.splat(0x88));
            let (even, odd) = (s.bits::<4>(v, 15), s.bits::<0>(v, 15));
            let codes = (s.zip_first(even, odd), s.zip_last(even, odd));
            let scale = scales_apart(s, scales, quad, n, self.shift);
            terms(s, n, codes, scale, times(s, scale, -8.0))
        }
    }
}

pub(super) mod k {
    //! Blocks of 256 numbers: two quads each.

    use super::*;

    /// Every byte's value.
    const fn each(byte: u8) -> u32 {
        u32::from_le_bytes([byte; 4])
    }

    /// # Safety
    /// Four bytes can be read.
    #[inline(always)]
    unsafe fn word(p: *const u8) -> u32 {
        // SAFETY: promised by the caller.
        u32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read_unaligned() })
    }

    /// # Safety
    /// Eight bytes can be read.
    #[inline(always)]
    unsafe fn long(p: *const u8) -> u64 {
        // SAFETY: promised by the caller.
        u64::from_le_bytes(unsafe { p.cast::<[u8; 8]>().read_unaligned() })
    }

    /// The even and the odd bytes, each plus `add`.
    #[inline(always)]
    fn even_odd<S: Bytes>(s: S, bytes: u64, add: f32) -> (S::Q, S::Q) {
        const EVEN: u64 = 0x00FF_00FF_00FF_00FF;
        let (one, add) = (s.q([1.0; 4]), s.q([add; 4]));
        (s.q_fma(s.q_u16(bytes & EVEN), one, add), s.q_fma(s.q_u16(bytes >> 8 & EVEN), one, add))
    }

    /// Scales and minima of half `half` of a block of Q4_K or Q5_K.
    ///
    /// # Safety
    /// The 16 bytes of both can be read at `p`.
    #[inline(always)]
    unsafe fn scales_6bit<S: Bytes>(s: S, p: *const u8, half: usize) -> (S::Q, S::Q) {
        // SAFETY: promised by the caller.
        let (a, b, c) = unsafe { (word(p.add(4)), word(p.add(8)), word(p.add(12))) };
        let (scales, minima) = if half == 0 {
            (a & each(63), b & each(63))
        } else {
            (c & each(15) | a >> 2 & each(48), c >> 4 & each(15) | b >> 2 & each(48))
        };
        // SAFETY: as above.
        let (d, e) = unsafe { (s.q_f16_splat(p), s.q_f16_splat(p.add(2))) };
        (s.q_mul(d, s.q_u8(scales)), times(s, s.q_mul(e, s.q_u8(minima)), -1.0))
    }

    macro_rules! block256 {
        ($name:ident, $bytes:literal, { $($consts:tt)* }, |$s:ident, $p:ident, $half:ident, $n:ident| $body:expr) => {
            #[derive(Clone, Copy)]
            pub(in super::super) struct $name;

            impl Stored for $name {
                $($consts)*

                #[inline(always)]
                fn bytes_read(self, n_quads: usize) -> usize {
                    n_quads / 2 * $bytes
                }

                #[inline(always)]
                unsafe fn quad<S: Bytes>(
                    self,
                    $s: S,
                    row: *const u8,
                    _: *const f32,
                    quad: usize,
                    $n: usize,
                ) -> Terms<S> {
                    // SAFETY: the block can be read, as promised by the caller.
                    unsafe {
                        let ($p, $half) = (row.add(quad / 2 * $bytes), quad % 2);
                        $body
                    }
                }
            }
        };
    }

    block256!(Q4K, 144, {}, |s, p, half, n| {
        // Low nibbles are groups 0 and 2 of the half, high ones groups 1 and 3.
        let (even, odd) = nibbles(s, s.load(p.add(16 + 64 * half)));
        let (scale, offset) = scales_6bit(s, p, half);
        terms(s, n, s.deal_in_turn(even, odd), scale, offset)
    });

    /// `src[i] >> shifts[group] & mask` for four groups with the same 16 bytes.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    unsafe fn shared<S: Bytes>(s: S, src: *const u8, shifts: [u32; 4], mask: u8) -> S::B {
        // SAFETY: promised by the caller.
        s.bits_by_run(unsafe { s.load_runs(src, 0) }, shifts, mask)
    }

    /// Where pairs of bits stand for the four groups of a half, and single bits.
    const PAIRS: [u32; 4] = [0, 2, 4, 6];
    const SINGLES: [[u32; 4]; 2] = [[0, 1, 2, 3], [4, 5, 6, 7]];

    block256!(Q5K, 176, {}, |s, p, half, n| {
        let (even, odd) = nibbles(s, s.load(p.add(48 + 64 * half)));
        let high = (
            s.shl::<4>(shared(s, p.add(16), SINGLES[half], 1)),
            s.shl::<4>(shared(s, p.add(32), SINGLES[half], 1)),
        );
        let (scale, offset) = scales_6bit(s, p, half);
        terms(s, n, either(s, s.deal_in_turn(even, odd), high), scale, offset)
    });

    block256!(
        Q2K,
        84,
        {
            const HALVES: bool = true;
        },
        |s, p, half, _n| {
            let packed = long(p.add(8 * half));
            let each = u64::MAX / 255 * 15;
            let (d, e) = (s.q_f16_splat(p.add(80)), times(s, s.q_f16_splat(p.add(82)), -1.0));
            let (scale, scale_second) = even_odd(s, packed & each, 0.0);
            let (offset, offset_second) = even_odd(s, packed >> 4 & each, 0.0);
            Terms {
                first: shared(s, p.add(16 + 32 * half), PAIRS, 3),
                second: shared(s, p.add(32 + 32 * half), PAIRS, 3),
                scale: s.q_mul(d, scale),
                scale_second: s.q_mul(d, scale_second),
                offset: s.q_mul(e, offset),
                offset_second: s.q_mul(e, offset_second),
            }
        }
    );

    /// Terms of codes around a middle, with signed scales of half-groups times the f16 at `d`.
    ///
    /// # Safety
    /// It can be read.
    #[inline(always)]
    unsafe fn centred<S: Bytes>(
        s: S,
        codes: (S::B, S::B),
        scales: (S::Q, S::Q),
        d: *const u8,
        middle: f32,
    ) -> Terms<S> {
        // SAFETY: promised by the caller.
        let d = unsafe { s.q_f16_splat(d) };
        let (scale, scale_second) = (s.q_mul(d, scales.0), s.q_mul(d, scales.1));
        Terms {
            first: codes.0,
            second: codes.1,
            scale,
            scale_second,
            offset: times(s, scale, -middle),
            offset_second: times(s, scale_second, -middle),
        }
    }

    block256!(
        Q3K,
        110,
        {
            const HALVES: bool = true;
        },
        |s, p, half, _n| {
            let low = (
                shared(s, p.add(32 + 32 * half), PAIRS, 3),
                shared(s, p.add(48 + 32 * half), PAIRS, 3),
            );
            let third = (
                s.shl::<2>(shared(s, p, SINGLES[half], 1)),
                s.shl::<2>(shared(s, p.add(16), SINGLES[half], 1)),
            );
            let codes = either(s, low, third);
            let low = long(p.add(96)) >> (4 * half) & (u64::MAX / 255 * 15);
            let high = word(p.add(104)) >> (4 * half);
            let high = u64::from(high & each(3)) | u64::from(high >> 2 & each(3)) << 32;
            let scales = even_odd(s, low | high << 4, -32.0);
            centred(s, codes, scales, p.add(108), 4.0)
        }
    );

    block256!(
        Q6K,
        210,
        {
            const HALVES: bool = true;
        },
        |s, p, half, _n| {
            let (low, high) = nibbles(s, s.load(p.add(64 * half)));
            let upper = (
                s.shl::<4>(shared(s, p.add(128 + 32 * half), PAIRS, 3)),
                s.shl::<4>(shared(s, p.add(144 + 32 * half), PAIRS, 3)),
            );
            let codes = either(s, s.deal(low, high), upper);
            // A signed byte with its highest bit flipped is the number plus 128.
            let scales = even_odd(s, long(p.add(192 + 8 * half)) ^ (u64::MAX / 255 * 128), -128.0);
            centred(s, codes, scales, p.add(208), 32.0)
        }
    );

    block256!(
        Iq4Xs,
        136,
        {
            const SIGNED: bool = true;
            const OFFSET: bool = false;
        },
        |s, p, half, n| {
            let codes = iq4(s, nibbles(s, s.load(p.add(8 + 64 * half))));
            let head = long(p);
            let low = (head >> (32 + 16 * half)) as u32;
            let low = low & 15 | (low & 0xF0) << 4 | (low & 0xF00) << 8 | (low & 0xF000) << 12;
            let high = (head >> (16 + 8 * half)) as u32;
            let high = high & 3 | (high & 0xC) << 6 | (high & 0x30) << 12 | (high & 0xC0) << 18;
            let scale = s.q_fma(s.q_u8(low | high << 4), s.q([1.0; 4]), s.q([-32.0; 4]));
            let scale = s.q_mul(s.q_f16_splat(p), scale);
            terms(s, n, codes, scale, scale)
        }
    );
}
