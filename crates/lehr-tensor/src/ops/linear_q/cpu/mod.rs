//! Which kernel multiplies what.
//!
//! Kernels for few rows of activations and for many share the order of additions of their format:
//! the choice between them changes no bit.

mod activations;
mod decode;
mod floats;
mod panels;
mod stored;
mod tiles;

use lehr_kernels::simd::bytes::has_wide_dot;

use stored::{Int4, Int8, Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Stored, k};

use crate::Result;
use crate::quant::{Activations, MatrixFormat, QMatrix, Scaling, WeightFormat};

/// The largest number of rows of `x` for which weights are read straight from where they lie where
/// products of bytes are fast: by measurement, packing panels pays beyond.
const FEW: usize = 20;

/// The same for weights that are multiplied as floats in either way.
const FEW_FLOATS: usize = 64;

/// `y = x Wᵀ + bias`; `x` has at least one row, `w` one row and one column.
pub(crate) fn forward(w: &QMatrix, x: &[f32], bias: Option<&[f32]>, y: &mut [f32]) -> Result<()> {
    let n_x = x.len() / w.cols();
    if n_x <= FEW_FLOATS {
        match w.format() {
            MatrixFormat::Gguf(WeightFormat::F32) => {
                return floats::multiply(floats::F32, w, x, bias, y);
            }
            MatrixFormat::Gguf(WeightFormat::F16) => {
                return floats::multiply(floats::F16, w, x, bias, y);
            }
            MatrixFormat::Gguf(WeightFormat::BF16) => {
                return floats::multiply(floats::Bf16, w, x, bias, y);
            }
            MatrixFormat::Nf4 => return floats::multiply(floats::Nf4, w, x, bias, y),
            _ => (),
        }
    }
    match w.activations() {
        Activations::Int8 => with_stored(w, Integers { w, x, bias, y }),
        Activations::F32 => panels::multiply(w, x, bias, y),
    }
}

/// `dx (+)= dy W`.
pub(crate) fn backward(w: &QMatrix, dy: &[f32], dx: &mut [f32], accumulate: bool) -> Result<()> {
    panels::backward(w, dy, dx, accumulate)
}

/// A product with activations of 8 bits.
struct Integers<'a> {
    w: &'a QMatrix,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Integers<'_> {
    fn run<W: Stored>(self, format: W) -> Result<()> {
        let Self { w, x, bias, y } = self;
        // Without wide products of bytes there are no tiles. Floats would be a little faster for
        // many rows, but they would be another result.
        if x.len() / w.cols() > FEW && has_wide_dot() {
            tiles::multiply(format, w, x, bias, y)
        } else {
            decode::multiply(format, w, x, bias, y)
        }
    }

    fn in_floats(self) -> Result<()> {
        panels::multiply(self.w, self.x, self.bias, self.y)
    }
}

/// Runs the product for the matrix's format, in f32 if its codes are not integers of groups of 32.
fn with_stored(w: &QMatrix, product: Integers<'_>) -> Result<()> {
    use WeightFormat as G;
    // Group i of 32 numbers has scale i >> shift.
    let shift = |scaling| match scaling {
        Scaling::Row => 31,
        Scaling::Group(n) => (n / 32).ilog2(),
    };
    let whole = w.cols().is_multiple_of(32);
    match w.format() {
        MatrixFormat::Gguf(G::F32 | G::F16 | G::BF16) | MatrixFormat::Nf4 => product.in_floats(),
        MatrixFormat::Int8(_) | MatrixFormat::Int4(_) if !whole => product.in_floats(),
        MatrixFormat::Int8(scaling) => product.run(Int8 { shift: shift(scaling) }),
        MatrixFormat::Int4(scaling) => product.run(Int4 { shift: shift(scaling) }),
        MatrixFormat::Gguf(G::Q4_0) => product.run(Q4_0),
        MatrixFormat::Gguf(G::Q4_1) => product.run(Q4_1),
        MatrixFormat::Gguf(G::Q5_0) => product.run(Q5_0),
        MatrixFormat::Gguf(G::Q5_1) => product.run(Q5_1),
        MatrixFormat::Gguf(G::Q8_0) => product.run(Q8_0),
        MatrixFormat::Gguf(G::IQ4_NL) => product.run(Iq4Nl),
        MatrixFormat::Gguf(G::Q2_K) => product.run(k::Q2K),
        MatrixFormat::Gguf(G::Q3_K) => product.run(k::Q3K),
        MatrixFormat::Gguf(G::Q4_K) => product.run(k::Q4K),
        MatrixFormat::Gguf(G::Q5_K) => product.run(k::Q5K),
        MatrixFormat::Gguf(G::Q6_K) => product.run(k::Q6K),
        MatrixFormat::Gguf(G::IQ4_XS) => product.run(k::Iq4Xs),
    }
}
