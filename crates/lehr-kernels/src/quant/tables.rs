//! Tables of constants that formats index.

/// The 16 levels of IQ4_NL and IQ4_XS, times 1/127 of the scale (ggml's `kvalues_iq4nl`).
pub const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The index of the level of [`IQ4`] nearest to `x`.
#[inline(always)]
pub(super) fn iq4_nearest(x: f32) -> u8 {
    /// Midpoints between neighbours.
    const MIDDLE: [f32; 15] = {
        let mut middle = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            middle[i] = (IQ4[i] as f32 + IQ4[i + 1] as f32) / 2.0;
            i += 1;
        }
        middle
    };
    MIDDLE.iter().map(|m| u8::from(x > *m)).sum()
}

/// The 16 levels of NF4, quantiles of the normal distribution within ±1 (Dettmers et al. 2023,
/// "QLoRA", appendix E).
#[expect(clippy::excessive_precision, reason = "as published")]
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The index of the level of [`NF4`] nearest to `x`.
#[inline(always)]
pub(super) fn nf4_nearest(x: f32) -> u8 {
    NF4.windows(2).map(|pair| u8::from(x > (pair[0] + pair[1]) / 2.0)).sum()
}
