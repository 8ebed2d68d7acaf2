//! Encoders: search for the scales of the groups, round them to a few bits, then choose the codes
//! nearest to the numbers under the rounded scales.

use super::N;
use super::search::{Guesses, affine, symmetric};
use crate::quant::block32::{inverse, iq4_codes, iq4_scale, signed_max};
use crate::quant::codec::{f16_at, put_f16};

/// The code of `x` under `scale · (q − offset)`, within `0..=max`; 0 for a scale of 0.
#[inline(always)]
fn code(x: f32, inverse: f32, offset: f32, max: f32) -> u8 {
    (x * inverse + offset).round_ties_even().clamp(0.0, max) as u8
}

/// Scales and minima of the groups, and the bytes `d`, `e` they are multiples of, for formats with
/// minima: codes up to `max`, f16 values at bytes `at` and `at + 2`.
#[inline(always)]
fn affine_scales<const G: usize, const L: usize>(
    x: &[f32; N],
    weight: impl Fn(&[f32; L], f32) -> f32,
    (levels, guesses): (f32, Guesses),
    max: f32,
    (b, at): (&mut [u8], usize),
) -> ([u8; G], [u8; G]) {
    let mut scales = [(0.0f32, 0.0f32); G];
    for (scale, x) in scales.iter_mut().zip(x.as_chunks::<L>().0) {
        let w = std::array::from_fn(|i| weight(x, x[i].abs()));
        *scale = affine(x, &w, levels, guesses);
    }
    let max_scale = scales.iter().fold(0.0f32, |m, s| m.max(s.0));
    let max_minimum = scales.iter().fold(0.0f32, |m, s| m.max(s.1));
    put_f16(b, at, max_scale / max);
    put_f16(b, at + 2, max_minimum / max);
    let (scale_inverse, minimum_inverse) = (max * inverse(max_scale), max * inverse(max_minimum));
    (
        scales.map(|s| code(s.0, scale_inverse, 0.0, max)),
        scales.map(|s| code(s.1, minimum_inverse, 0.0, max)),
    )
}

/// Root of the mean square plus magnitude: large numbers count more, and small ones still count.
#[inline(always)]
fn rms_plus_magnitude(x: &[f32; 32], magnitude: f32) -> f32 {
    (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt() + magnitude
}

#[inline(always)]
fn put_scales_6bit_pairs(scales: &[u8; 8], minima: &[u8; 8], b: &mut [u8]) {
    for j in 0..4 {
        b[j] = scales[j] | scales[j + 4] >> 4 << 6;
        b[j + 4] = minima[j] | minima[j + 4] >> 4 << 6;
        b[j + 8] = scales[j + 4] & 15 | minima[j + 4] << 4;
    }
}

/// The codes of Q4_K and Q5_K, after their scales have been written.
#[inline(always)]
fn affine_codes(x: &[f32; N], levels: f32, guesses: Guesses, b: &mut [u8]) -> [u8; N] {
    let (scales, minima) =
        affine_scales::<8, 32>(x, rms_plus_magnitude, (levels, guesses), 63.0, (&mut *b, 0));
    put_scales_6bit_pairs(&scales, &minima, &mut b[4..16]);
    let (d, e) = (f16_at(b, 0), f16_at(b, 2));
    std::array::from_fn(|i| {
        let (scale, minimum) = (d * f32::from(scales[i / 32]), e * f32::from(minima[i / 32]));
        code(x[i] + minimum, inverse(scale), 0.0, levels)
    })
}

#[inline(always)]
pub(in crate::quant) fn encode_q4_k(x: &[f32; N], b: &mut [u8; 144]) {
    let guesses = Guesses { first: -1.0, step: 0.1, n: 21 };
    let q = affine_codes(x, 15.0, guesses, b);
    for (run, q) in q.as_chunks::<64>().0.iter().enumerate() {
        for i in 0..32 {
            b[16 + run * 32 + i] = q[i] | q[i + 32] << 4;
        }
    }
}

#[inline(always)]
pub(in crate::quant) fn encode_q5_k(x: &[f32; N], b: &mut [u8; 176]) {
    let guesses = Guesses { first: -0.5, step: 0.1, n: 16 };
    let q = affine_codes(x, 31.0, guesses, b);
    let (high, low) = b[16..].split_at_mut(32);
    high.fill(0);
    for (run, q) in q.as_chunks::<64>().0.iter().enumerate() {
        for i in 0..32 {
            low[run * 32 + i] = q[i] & 15 | q[i + 32] << 4;
            high[i] |= (q[i] >> 4) << (2 * run) | (q[i + 32] >> 4) << (2 * run + 1);
        }
    }
}

#[inline(always)]
pub(in crate::quant) fn encode_q2_k(x: &[f32; N], b: &mut [u8; 84]) {
    let guesses = Guesses { first: -0.5, step: 0.1, n: 16 };
    let (scales, minima) = affine_scales::<16, 16>(
        x,
        |_, magnitude| magnitude,
        (3.0, guesses),
        15.0,
        (&mut b[..], 80),
    );
    let (d, e) = (f16_at(b, 80), f16_at(b, 82));
    b[16..80].fill(0);
    for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
        b[j] = scales[j] | minima[j] << 4;
        let (scale, minimum) = (d * f32::from(scales[j]), e * f32::from(minima[j]));
        let (bytes, shift) = (&mut b[16 + j / 8 * 32 + j % 2 * 16..][..16], j / 2 % 4 * 2);
        for i in 0..16 {
            bytes[i] |= code(x[i] + minimum, inverse(scale), 0.0, 3.0) << shift;
        }
    }
}

/// Signed codes of the scales of groups of 16 within `−max..max`, and their unit, which is the
/// f16 written at byte `at`.
#[inline(always)]
fn symmetric_scales(x: &[f32; N], levels: f32, max: f32, b: &mut [u8], at: usize) -> [i8; 16] {
    let groups = x.as_chunks::<16>().0;
    let scales: [f32; 16] = std::array::from_fn(|j| symmetric(&groups[j], levels));
    let unit = signed_max(&scales) / -max;
    put_f16(b, at, unit);
    let inverse = inverse(unit);
    scales.map(|s| (s * inverse).round_ties_even().clamp(-max, max - 1.0) as i8)
}

#[inline(always)]
pub(in crate::quant) fn encode_q6_k(x: &[f32; N], b: &mut [u8; 210]) {
    let scales = symmetric_scales(x, 32.0, 128.0, b, 208);
    let d = f16_at(b, 208);
    b[..192].fill(0);
    for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
        b[192 + j] = scales[j] as u8;
        let inverse = inverse(d * f32::from(scales[j]));
        let (half, run, side) = (j / 8, j / 2 % 4, j % 2 * 16);
        for i in 0..16 {
            let q = code(x[i], inverse, 32.0, 63.0);
            b[half * 64 + run % 2 * 32 + side + i] |= (q & 15) << (run / 2 * 4);
            b[128 + half * 32 + side + i] |= (q >> 4) << (2 * run);
        }
    }
}

#[inline(always)]
pub(in crate::quant) fn encode_q3_k(x: &[f32; N], b: &mut [u8; 110]) {
    let scales = symmetric_scales(x, 4.0, 32.0, b, 108);
    let d = f16_at(b, 108);
    b[..108].fill(0);
    for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let stored = (scales[j] + 32) as u8;
        b[96 + j % 8] |= (stored & 15) << (j / 8 * 4);
        b[104 + j % 4] |= (stored >> 4) << (2 * (j / 4));
        let inverse = inverse(d * f32::from(scales[j]));
        let (side, shift) = (j % 2 * 16, j / 2 % 4 * 2);
        for i in 0..16 {
            let q = code(x[i], inverse, 4.0, 7.0);
            b[side + i] |= (q >> 2) << (j / 2);
            b[32 + j / 8 * 32 + side + i] |= (q & 3) << shift;
        }
    }
}

#[inline(always)]
pub(in crate::quant) fn encode_iq4_xs(x: &[f32; N], b: &mut [u8; 136]) {
    let groups = x.as_chunks::<32>().0;
    let scales: [f32; 8] = std::array::from_fn(|j| iq4_scale(&groups[j]));
    let unit = signed_max(&scales) / -32.0;
    put_f16(b, 0, unit);
    let (unit_inverse, d) = (inverse(unit), f16_at(b, 0));
    b[2..8].fill(0);
    for (j, x) in groups.iter().enumerate() {
        let scale = (scales[j] * unit_inverse).round_ties_even().clamp(-32.0, 31.0);
        let stored = (scale as i8 + 32) as u8;
        b[2 + j / 4] |= (stored >> 4) << (j % 4 * 2);
        b[4 + j / 2] |= (stored & 15) << (j % 2 * 4);
        let q = iq4_codes(x, d * scale);
        for i in 0..16 {
            b[8 + j * 16 + i] = q[i] | q[i + 16] << 4;
        }
    }
}
