use crate::DType;
use crate::testing::Array;

/// Each value rounded to the nearest number of the type; of two equally near, to the one whose
/// last bit is 0. Overflow gives infinity.
pub(super) fn round(x: &Array, dtype: DType) -> Array {
    // Bits of the significand, smallest normal exponent, first number that overflows.
    let (bits, exponent_min, limit) = match dtype {
        DType::BF16 => (8, -126, 2f64.powi(128) - 2f64.powi(119)),
        DType::F16 => (11, -14, 65_520.0),
        DType::F32 | DType::I32 => return x.clone(),
    };
    let round = |x: &f64| {
        if x.abs() >= limit {
            return x.signum() * f64::INFINITY;
        }
        let exponent = (x.abs().log2().floor() as i32).max(exponent_min);
        let unit = 2f64.powi(exponent - bits + 1);
        (x / unit).round_ties_even() * unit
    };
    Array { shape: x.shape.clone(), data: x.data.iter().map(round).collect() }
}
