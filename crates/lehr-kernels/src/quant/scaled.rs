//! lehr's own formats: codes of a whole matrix in one place, scales in another.
//!
//! | format | code of a number | scale |
//! |---|---|---|
//! | INT8 | signed byte −127..=127 | max \|w\| / 127 of the row or group |
//! | INT4 | signed nibble −7..=7 | max \|w\| / 7 of the row or group |
//! | NF4 | nibble, index of a table | max \|w\| of 64 numbers |
//!
//! Two nibbles share a byte, that of the even column in the upper half. INT8 and INT4 by rows are
//! the weights of GLM-130B and ChatGLM-6B (Zeng et al. 2022, section 4.1), NF4 those of QLoRA.

use half::f16;

use super::tables::{NF4, nf4_nearest};

/// Numbers that share a scale in NF4.
pub const NF4_GROUP: usize = 64;

/// The meaning of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Int8,
    Int4,
    Nf4,
}

impl Code {
    /// Codes in `n` numbers' bytes.
    pub const fn n_bytes(self, n: usize) -> usize {
        match self {
            Self::Int8 => n,
            Self::Int4 | Self::Nf4 => n / 2,
        }
    }

    /// Writes the numbers of one scale.
    #[inline(always)]
    pub fn decode(self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        match self {
            Self::Int8 => {
                for (v, b) in out.iter_mut().zip(bytes) {
                    *v = f32::from(*b as i8) * scale;
                }
            }
            Self::Int4 => {
                for (v, b) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    // Shifts of signed bytes extend the sign.
                    *v = [f32::from(*b as i8 >> 4), f32::from((b << 4) as i8 >> 4)];
                    *v = v.map(|v| v * scale);
                }
            }
            Self::Nf4 => {
                for (v, b) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *v = [NF4[usize::from(b >> 4)] * scale, NF4[usize::from(b & 15)] * scale];
                }
            }
        }
    }

    /// Stores the numbers of one scale and returns it. The scales of integers are rounded to f16,
    /// as the checkpoints of their models hold them.
    #[inline(always)]
    pub fn encode(self, x: &[f32], bytes: &mut [u8]) -> f32 {
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let levels = match self {
            Self::Int8 => 127.0,
            Self::Int4 => 7.0,
            Self::Nf4 => 1.0,
        };
        let scale = match self {
            Self::Int8 | Self::Int4 => f16::from_f32(largest / levels).to_f32(),
            Self::Nf4 => largest,
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let int = |x: f32| (x * inverse).round_ties_even().clamp(-levels, levels) as i8 as u8;
        match self {
            Self::Int8 => {
                for (b, x) in bytes.iter_mut().zip(x) {
                    *b = int(*x);
                }
            }
            Self::Int4 => {
                for (b, x) in bytes.iter_mut().zip(x.as_chunks::<2>().0) {
                    *b = int(x[0]) << 4 | int(x[1]) & 15;
                }
            }
            Self::Nf4 => {
                for (b, x) in bytes.iter_mut().zip(x.as_chunks::<2>().0) {
                    *b = nf4_nearest(x[0] * inverse) << 4 | nf4_nearest(x[1] * inverse);
                }
            }
        }
        scale
    }
}
