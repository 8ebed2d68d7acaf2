//! The storage formats of GGUF files, and their codecs.

use half::{bf16, f16};

use super::block32 as b32;
use super::codec::{decode_blocks, encode_blocks};
use super::kquant as k;
use crate::math::f16_to_f32;

/// Storage format of the numbers of a weight.
///
/// The block formats are ggml's, in the byte layout of GGUF files:
/// <https://github.com/ggml-org/ggml>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names everybody knows them by")]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, 5 bits of exponent.
    F16,
    /// 16-bit floats, 8 bits of exponent.
    BF16,
    /// 32 numbers of 4 bits, one scale.
    Q4_0,
    /// 32 numbers of 4 bits, scale and minimum.
    Q4_1,
    /// 32 numbers of 5 bits, one scale.
    Q5_0,
    /// 32 numbers of 5 bits, scale and minimum.
    Q5_1,
    /// 32 numbers of 8 bits, one scale.
    Q8_0,
    /// 256 numbers of 2 bits in 16 groups with scales and minima of 4 bits.
    Q2_K,
    /// 256 numbers of 3 bits in 16 groups with scales of 6 bits.
    Q3_K,
    /// 256 numbers of 4 bits in 8 groups with scales and minima of 6 bits.
    Q4_K,
    /// 256 numbers of 5 bits in 8 groups with scales and minima of 6 bits.
    Q5_K,
    /// 256 numbers of 6 bits in 16 groups with scales of 8 bits.
    Q6_K,
    /// 32 numbers of 4 bits that index a table, one scale.
    IQ4_NL,
    /// 256 numbers of 4 bits that index a table, 8 groups with scales of 6 bits.
    IQ4_XS,
}

use WeightFormat::{
    BF16, F16, F32, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};

impl WeightFormat {
    /// All formats.
    pub const ALL: [Self; 15] = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
    ];

    /// Returns this format, or the nearest whose blocks fill rows of `width` numbers, as llama.cpp
    /// chooses it.
    #[must_use]
    pub const fn fallback_for(self, width: usize) -> Self {
        let smaller = match self {
            Q2_K | Q3_K | IQ4_XS => IQ4_NL,
            Q4_K => Q5_0,
            Q5_K => Q5_1,
            Q6_K => Q8_0,
            other => other,
        };
        match () {
            () if width.is_multiple_of(self.block_len()) => self,
            () if width.is_multiple_of(smaller.block_len()) => smaller,
            () => F16,
        }
    }

    /// Numbers per block; rows of a matrix are whole blocks.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
        }
    }

    /// Bytes per block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_XS => 136,
        }
    }

    /// The number of this format in GGUF files.
    #[must_use]
    pub const fn ggml_id(self) -> u32 {
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q2_K => 10,
            Q3_K => 11,
            Q4_K => 12,
            Q5_K => 13,
            Q6_K => 14,
            IQ4_NL => 20,
            IQ4_XS => 23,
            BF16 => 30,
        }
    }

    /// The format of a number in GGUF files, if lehr knows it.
    #[must_use]
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.ggml_id() == id)
    }

    /// Bytes of `n` numbers, which are whole blocks.
    #[must_use]
    pub const fn n_bytes(self, n: usize) -> usize {
        n / self.block_len() * self.block_bytes()
    }

    /// Root mean square error of storing normally distributed numbers, relative to their root mean
    /// square, as measured by the tests.
    #[must_use]
    pub const fn relative_error(self) -> f32 {
        match self {
            F32 => 0.0,
            F16 => 0.000_207,
            BF16 => 0.001_652,
            Q4_0 => 0.0859,
            Q4_1 => 0.0781,
            Q5_0 => 0.0426,
            Q5_1 => 0.0377,
            Q8_0 => 0.005_34,
            Q2_K => 0.2859,
            Q3_K => 0.1529,
            Q4_K => 0.0716,
            Q5_K => 0.0362,
            Q6_K => 0.0177,
            IQ4_NL => 0.0761,
            IQ4_XS => 0.0767,
        }
    }

    /// Writes the numbers stored in `bytes` to `out`, in parallel.
    ///
    /// Every step is rounded to f32 in the order of ggml's reference, so that the bits are those
    /// of the `gguf` Python package.
    ///
    /// # Panics
    /// If `out` is not whole blocks or `bytes` has another length than they take.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        self.check_lengths(bytes.len(), out.len());
        match self {
            F32 => decode_blocks(bytes, out, |b: &[u8; 4], v| *v = [f32::from_le_bytes(*b)]),
            F16 => decode_blocks(bytes, out, |b: &[u8; 2], v| {
                *v = [f16_to_f32(u16::from_le_bytes(*b))];
            }),
            BF16 => decode_blocks(bytes, out, |b: &[u8; 2], v| {
                *v = [f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)];
            }),
            Q4_0 => decode_blocks(bytes, out, b32::decode_q4_0),
            Q4_1 => decode_blocks(bytes, out, b32::decode_q4_1),
            Q5_0 => decode_blocks(bytes, out, b32::decode_q5_0),
            Q5_1 => decode_blocks(bytes, out, b32::decode_q5_1),
            Q8_0 => decode_blocks(bytes, out, b32::decode_q8_0),
            Q2_K => decode_blocks(bytes, out, k::decode_q2_k),
            Q3_K => decode_blocks(bytes, out, k::decode_q3_k),
            Q4_K => decode_blocks(bytes, out, k::decode_q4_k),
            Q5_K => decode_blocks(bytes, out, k::decode_q5_k),
            Q6_K => decode_blocks(bytes, out, k::decode_q6_k),
            IQ4_NL => decode_blocks(bytes, out, b32::decode_iq4_nl),
            IQ4_XS => decode_blocks(bytes, out, k::decode_iq4_xs),
        }
    }

    /// Returns whether [`WeightFormat::quantize`] writes this format. Today it writes all of them.
    /// Callers that offer a choice must ask, because a format that can only be read may be added.
    #[must_use]
    pub const fn can_quantize(self) -> bool {
        true
    }

    /// Stores `values` in `out`, in parallel. The bits do not depend on threads or instruction set.
    ///
    /// The floats are rounded to the nearest (ties to even). Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 have
    /// the bits of ggml's reference. The K-quants and IQ4 formats search for scales with a small
    /// weighted error; [`WeightFormat::relative_error`] is the error that remains. Scales are f16,
    /// so numbers must be finite and, in blocks, their scales below 65504.
    ///
    /// # Panics
    /// If `values` is not whole blocks or `out` has another length than they take.
    pub fn quantize(self, values: &[f32], out: &mut [u8]) {
        self.check_lengths(out.len(), values.len());
        match self {
            F32 => encode_blocks(values, out, |v: &[f32; 1], b| *b = v[0].to_le_bytes()),
            F16 => encode_blocks(values, out, |v: &[f32; 1], b| {
                *b = f16::from_f32(v[0]).to_le_bytes();
            }),
            BF16 => encode_blocks(values, out, |v: &[f32; 1], b| {
                *b = bf16::from_f32(v[0]).to_le_bytes();
            }),
            Q4_0 => encode_blocks(values, out, b32::encode_q4_0),
            Q4_1 => encode_blocks(values, out, b32::encode_q4_1),
            Q5_0 => encode_blocks(values, out, b32::encode_q5_0),
            Q5_1 => encode_blocks(values, out, b32::encode_q5_1),
            Q8_0 => encode_blocks(values, out, b32::encode_q8_0),
            Q2_K => encode_blocks(values, out, k::encode_q2_k),
            Q3_K => encode_blocks(values, out, k::encode_q3_k),
            Q4_K => encode_blocks(values, out, k::encode_q4_k),
            Q5_K => encode_blocks(values, out, k::encode_q5_k),
            Q6_K => encode_blocks(values, out, k::encode_q6_k),
            IQ4_NL => encode_blocks(values, out, b32::encode_iq4_nl),
            IQ4_XS => encode_blocks(values, out, k::encode_iq4_xs),
        }
    }

    fn check_lengths(self, n_bytes: usize, n: usize) {
        assert!(n.is_multiple_of(self.block_len()), "{n} numbers are not whole blocks of {self}");
        assert_eq!(n_bytes, self.n_bytes(n), "the bytes of {n} numbers in {self}");
    }
}

impl std::fmt::Display for WeightFormat {
    /// The name in ggml's spelling: `Q4_K`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}
