//! K-quants: blocks of 256 numbers in groups of 16 or 32, whose scales (and minima) are themselves
//! few-bit integers times one f16 (and another) of the block.
//!
//! | format | groups | value | fields in order (bytes) |
//! |---|---|---|---|
//! | Q2_K | 16 of 16 | d s q − e m | s, m: nibbles (16); q: 2 bits (64); d; e |
//! | Q3_K | 16 of 16 | d (s − 32) (q − 4) | third bits (32); q: 2 bits (64); s: 6 bits (12); d |
//! | Q4_K | 8 of 32 | d s q − e m | d; e; s, m: 6 bits (12); q: nibbles (128) |
//! | Q5_K | 8 of 32 | d s q − e m | d; e; s, m: 6 bits (12); fifth bits (32); q: nibbles (128) |
//! | Q6_K | 16 of 16 | d s (q − 32) | q: nibbles (128); upper 2 bits (64); s: signed bytes (16); d |
//! | IQ4_XS | 8 of 32 | d (s − 32) table\[q\] | d; s: upper 2 bits (2), nibbles (4); q: nibbles (128) |

mod decode;
mod encode;
mod search;

pub(super) use decode::{
    decode_iq4_xs, decode_q2_k, decode_q3_k, decode_q4_k, decode_q5_k, decode_q6_k,
};
pub(super) use encode::{
    encode_iq4_xs, encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k,
};

/// Numbers per block.
const N: usize = 256;
