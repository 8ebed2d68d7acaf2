//! Blocks of 32 numbers with one scale `d`, or with a scale and a minimum `m`, both f16.
//!
//! | format | bytes | value |
//! |---|---|---|
//! | Q4_0 | d, 16 × (low nibble: number i, high nibble: number i + 16) | d (q − 8) |
//! | Q4_1 | d, m, 16 as above | d q + m |
//! | Q5_0 | d, 32 fifth bits, 16 as above | d (q − 16) |
//! | Q5_1 | d, m, 32 fifth bits, 16 as above | d q + m |
//! | Q8_0 | d, 32 signed bytes | d q |
//! | IQ4_NL | d, 16 as Q4_0 | d table\[q\] |
//!
//! The encoders round as ggml's `quantize_row_*_ref` do, bit for bit, IQ4_NL excepted (it
//! searches).

use super::codec::{f16_at, put_f16};
use super::tables::{IQ4, iq4_nearest};

/// Numbers per block.
const N: usize = 32;

/// The low nibbles of 16 bytes, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

#[inline(always)]
fn put_nibbles(q: &[u8; N], bytes: &mut [u8]) {
    for i in 0..16 {
        bytes[i] = q[i] & 15 | q[i + 16] << 4;
    }
}

/// Nibbles with their fifth bits.
#[inline(always)]
fn five_bits(high: &[u8], low: &[u8]) -> [u8; N] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let low = nibbles(low);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

#[inline(always)]
fn put_five_bits(q: &[u8; N], high: &mut [u8], low: &mut [u8]) {
    let bits = (0..N).fold(0u32, |bits, i| bits | u32::from(q[i] >> 4) << i);
    high.copy_from_slice(&bits.to_le_bytes());
    put_nibbles(q, low);
}

#[inline(always)]
pub(super) fn decode_q4_0(b: &[u8; 18], out: &mut [f32; N]) {
    let (d, q) = (f16_at(b, 0), nibbles(&b[2..]));
    *out = std::array::from_fn(|i| d * f32::from(q[i] as i8 - 8));
}

#[inline(always)]
pub(super) fn decode_q4_1(b: &[u8; 20], out: &mut [f32; N]) {
    let (d, m, q) = (f16_at(b, 0), f16_at(b, 2), nibbles(&b[4..]));
    *out = std::array::from_fn(|i| d * f32::from(q[i]) + m);
}

#[inline(always)]
pub(super) fn decode_q5_0(b: &[u8; 22], out: &mut [f32; N]) {
    let (d, q) = (f16_at(b, 0), five_bits(&b[2..6], &b[6..]));
    *out = std::array::from_fn(|i| d * f32::from(q[i] as i8 - 16));
}

#[inline(always)]
pub(super) fn decode_q5_1(b: &[u8; 24], out: &mut [f32; N]) {
    let (d, m, q) = (f16_at(b, 0), f16_at(b, 2), five_bits(&b[4..8], &b[8..]));
    *out = std::array::from_fn(|i| d * f32::from(q[i]) + m);
}

#[inline(always)]
pub(super) fn decode_q8_0(b: &[u8; 34], out: &mut [f32; N]) {
    let d = f16_at(b, 0);
    *out = std::array::from_fn(|i| f32::from(b[2 + i] as i8) * d);
}

#[inline(always)]
pub(super) fn decode_iq4_nl(b: &[u8; 18], out: &mut [f32; N]) {
    let (d, q) = (f16_at(b, 0), nibbles(&b[2..]));
    *out = std::array::from_fn(|i| d * f32::from(IQ4[usize::from(q[i])]));
}

/// The number of largest magnitude, with its sign; the first of several.
#[inline(always)]
pub(super) fn signed_max(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}

#[inline(always)]
fn range(x: &[f32; N]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// 1 / d, or 0 for a block of zeros.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `⌊x inverse + middle⌋` within 0..=max for codes around a middle.
#[inline(always)]
fn centred(x: &[f32; N], inverse: f32, middle: f32, max: u8) -> [u8; N] {
    std::array::from_fn(|i| ((x[i] * inverse + middle + 0.5) as u8).min(max))
}

/// `⌊(x − low) inverse + ½⌋` within 0..=max.
#[inline(always)]
fn above(x: &[f32; N], low: f32, inverse: f32, max: u8) -> [u8; N] {
    std::array::from_fn(|i| (((x[i] - low) * inverse + 0.5) as u8).min(max))
}

#[inline(always)]
pub(super) fn encode_q4_0(x: &[f32; N], b: &mut [u8; 18]) {
    let d = signed_max(x) / -8.0;
    put_f16(b, 0, d);
    put_nibbles(&centred(x, inverse(d), 8.0, 15), &mut b[2..]);
}

#[inline(always)]
pub(super) fn encode_q4_1(x: &[f32; N], b: &mut [u8; 20]) {
    let (low, high) = range(x);
    let d = (high - low) / 15.0;
    put_f16(b, 0, d);
    put_f16(b, 2, low);
    put_nibbles(&above(x, low, inverse(d), 15), &mut b[4..]);
}

#[inline(always)]
pub(super) fn encode_q5_0(x: &[f32; N], b: &mut [u8; 22]) {
    let d = signed_max(x) / -16.0;
    put_f16(b, 0, d);
    let (high, low) = b[2..].split_at_mut(4);
    put_five_bits(&centred(x, inverse(d), 16.0, 31), high, low);
}

#[inline(always)]
pub(super) fn encode_q5_1(x: &[f32; N], b: &mut [u8; 24]) {
    let (low, high) = range(x);
    let d = (high - low) / 31.0;
    put_f16(b, 0, d);
    put_f16(b, 2, low);
    let (high_bits, low_bits) = b[4..].split_at_mut(4);
    put_five_bits(&above(x, low, inverse(d), 31), high_bits, low_bits);
}

#[inline(always)]
pub(super) fn encode_q8_0(x: &[f32; N], b: &mut [u8; 34]) {
    let d = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    put_f16(b, 0, d);
    let inverse = inverse(d);
    for i in 0..N {
        // Halves away from zero, exactly: adding ½ first would round 0.49999997 up.
        let scaled = x[i] * inverse;
        let whole = scaled as i32;
        let rest = scaled - whole as f32;
        b[2 + i] = (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8 as u8;
    }
}

/// The scale with the least error Σ x² (x − d table\[q\])² among 15 near the one that puts the
/// largest number on the outermost level.
#[inline(always)]
pub(super) fn iq4_scale(x: &[f32; N]) -> f32 {
    let max = signed_max(x);
    if max == 0.0 {
        return 0.0;
    }
    let (mut best, mut scale) = (0.0, 0.0);
    for step in -7..=7i8 {
        let inverse = (f32::from(step) + f32::from(IQ4[0])) / max;
        let (mut xq, mut qq) = (0.0f32, 0.0f32);
        for &x in x {
            let q = f32::from(IQ4[usize::from(iq4_nearest(x * inverse))]);
            let weight = x * x;
            xq += weight * x * q;
            qq += weight * q * q;
        }
        // The fit removes xq² / qq of the error.
        if qq > 0.0 && xq * xq > best * qq {
            scale = xq / qq;
            best = scale * xq;
        }
    }
    scale
}

/// The nearest level of each number for scale `d`.
#[inline(always)]
pub(super) fn iq4_codes(x: &[f32; N], d: f32) -> [u8; N] {
    let inverse = inverse(d);
    std::array::from_fn(|i| iq4_nearest(x[i] * inverse))
}

#[inline(always)]
pub(super) fn encode_iq4_nl(x: &[f32; N], b: &mut [u8; 18]) {
    put_f16(b, 0, iq4_scale(x));
    put_nibbles(&iq4_codes(x, f16_at(b, 0)), &mut b[2..]);
}
