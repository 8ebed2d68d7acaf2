//! Decoders: blocks to numbers.

use super::N;
use crate::quant::codec::f16_at;
use crate::quant::tables::IQ4;

/// Eight scales and eight minima of 6 bits in 12 bytes: the low 6 bits of bytes 0 to 3 and 4 to 7
/// are the first four of each, the nibbles of bytes 8 to 11 the low bits of the last four, whose
/// upper two bits stand above the first four.
#[inline(always)]
fn scales_6bit_pairs(b: &[u8]) -> ([u8; 8], [u8; 8]) {
    let scale = |j: usize| {
        if j < 4 { b[j] & 63 } else { b[j + 4] & 15 | b[j - 4] >> 6 << 4 }
    };
    let minimum = |j: usize| {
        if j < 4 { b[j + 4] & 63 } else { b[j + 4] >> 4 | b[j] >> 6 << 4 }
    };
    (std::array::from_fn(scale), std::array::from_fn(minimum))
}

/// The 16 scales of Q3_K minus 32: 8 bytes of nibbles (low: 0 to 7, high: 8 to 15), 4 bytes of
/// pairs of upper bits.
#[inline(always)]
fn scales_6bit_signed(b: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 { b[j] & 15 } else { b[j - 8] >> 4 };
        let high = b[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

#[inline(always)]
pub(in crate::quant) fn decode_q2_k(b: &[u8; 84], out: &mut [f32; N]) {
    let (d, e) = (f16_at(b, 80), f16_at(b, 82));
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(b[j] & 15), e * f32::from(b[j] >> 4));
        // Four runs of 32 numbers share 32 bytes, two bits each.
        let (q, shift) = (&b[16 + j / 8 * 32 + j % 2 * 16..][..16], j / 2 % 4 * 2);
        *out = std::array::from_fn(|i| scale * f32::from(q[i] >> shift & 3) - minimum);
    }
}

#[inline(always)]
pub(in crate::quant) fn decode_q3_k(b: &[u8; 110], out: &mut [f32; N]) {
    let (d, scales) = (f16_at(b, 108), scales_6bit_signed(&b[96..108]));
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j]);
        let high = &b[j % 2 * 16..][..16];
        let (q, shift) = (&b[32 + j / 8 * 32 + j % 2 * 16..][..16], j / 2 % 4 * 2);
        *out = std::array::from_fn(|i| {
            let q = q[i] >> shift & 3 | (high[i] >> (j / 2) & 1) << 2;
            scale * f32::from(q as i8 - 4)
        });
    }
}

#[inline(always)]
pub(in crate::quant) fn decode_q4_k(b: &[u8; 144], out: &mut [f32; N]) {
    let (d, e) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_6bit_pairs(&b[4..16]);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(scales[j]), e * f32::from(minima[j]));
        let (q, shift) = (&b[16 + j / 2 * 32..][..32], j % 2 * 4);
        *out = std::array::from_fn(|i| scale * f32::from(q[i] >> shift & 15) - minimum);
    }
}

#[inline(always)]
pub(in crate::quant) fn decode_q5_k(b: &[u8; 176], out: &mut [f32; N]) {
    let (d, e) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_6bit_pairs(&b[4..16]);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * f32::from(scales[j]), e * f32::from(minima[j]));
        let (high, q, shift) = (&b[16..48], &b[48 + j / 2 * 32..][..32], j % 2 * 4);
        *out = std::array::from_fn(|i| {
            let q = q[i] >> shift & 15 | (high[i] >> j & 1) << 4;
            scale * f32::from(q) - minimum
        });
    }
}

#[inline(always)]
pub(in crate::quant) fn decode_q6_k(b: &[u8; 210], out: &mut [f32; N]) {
    let d = f16_at(b, 208);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(b[192 + j] as i8);
        // Halves of 128 numbers: runs 0 and 1 of 32 in the low nibbles of 64 bytes, 2 and 3 in the
        // high ones; the upper bits of all four runs in 32 bytes.
        let (half, run, side) = (j / 8, j / 2 % 4, j % 2 * 16);
        let (low, low_shift) = (&b[half * 64 + run % 2 * 32 + side..][..16], run / 2 * 4);
        let high = &b[128 + half * 32 + side..][..16];
        *out = std::array::from_fn(|i| {
            let q = low[i] >> low_shift & 15 | (high[i] >> (2 * run) & 3) << 4;
            scale * f32::from(q as i8 - 32)
        });
    }
}

#[inline(always)]
pub(in crate::quant) fn decode_iq4_xs(b: &[u8; 136], out: &mut [f32; N]) {
    let d = f16_at(b, 0);
    let upper = u16::from_le_bytes([b[2], b[3]]);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = b[4 + j / 2] >> (j % 2 * 4) & 15;
        let high = (upper >> (2 * j) & 3) as u8;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        let q = &b[8 + j * 16..][..16];
        *out = std::array::from_fn(|i| {
            let q = if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 };
            scale * f32::from(IQ4[usize::from(q)])
        });
    }
}
