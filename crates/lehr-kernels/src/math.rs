//! Elementary functions of vectors, and the conversion of f16.

use super::simd::Simd;

/// Converts the bits of an f16 to the f32 of the same value. It has no branch, so the compiler can
/// turn loops over blocks into vector code.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7FFF));
    // The exponent moves from bias 15 to bias 127 by a product with 2^112, which is exact and also
    // normalises subnormals; infinities and NaN keep all ones in the exponent.
    let value = f32::from_bits(rest << 13) * f32::from_bits((254 - 15) << 23);
    let special = if rest >= 0x7C00 { 0xFF << 23 } else { 0 };
    f32::from_bits(value.to_bits() | special | sign)
}

/// `e^x` to 2 ulp: `2^n · p(r)` with `x = n ln 2 + r`, `|r| <= ln 2 / 2`.
///
/// Below −87.3 the result is between 0 and 2^−126; above 88 it is clamped to the largest power. So
/// masked scores of −∞ give (almost) 0, and nothing overflows. Coefficients: Cephes `expf`, Moshier
/// 1989.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // This order of operands propagates NaN.
    let x = s.max(s.splat(-87.336_54), s.min(s.splat(88.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that n times the first is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.mul(p, s.pow2(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Scalar, dispatch};

    struct Exps<'a>(&'a [f32]);

    impl Kernel for Exps<'_> {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = Vec::new();
            for &x in self.0 {
                let mut lanes = [0.0; 16];
                // SAFETY: no instruction set has more than 16 lanes.
                unsafe { s.store(lanes.as_mut_ptr(), exp(s, s.splat(x))) };
                out.push(lanes[0]);
            }
            out
        }
    }

    #[test]
    fn exp_matches_double_precision() {
        let xs: Vec<f32> = (-870..880).map(|i| i as f32 / 10.0 + 0.013).collect();
        for out in [dispatch(Exps(&xs)), Exps(&xs).run(Scalar)] {
            for (x, y) in xs.iter().zip(out) {
                let want = f64::from(*x).exp();
                assert!((f64::from(y) - want).abs() <= want * 2.5e-7, "exp({x}) = {y}, not {want}");
            }
        }
    }

    #[test]
    fn exp_of_no_number_is_no_number_and_of_minus_infinity_next_to_nothing() {
        for out in
            [dispatch(Exps(&[f32::NAN, f32::NEG_INFINITY])), Exps(&[f32::NAN, -1e30]).run(Scalar)]
        {
            assert!(out[0].is_nan() && out[1] < 1.2e-38);
        }
    }
}
