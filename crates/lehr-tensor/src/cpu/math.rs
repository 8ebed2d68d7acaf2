//! Elementary functions on vectors.

use super::simd::Simd;

/// `e^x` to 2 ulp: `2^n · p(r)` with `x = n ln 2 + r`, `|r| <= ln 2 / 2`.
///
/// Below −87.3 the result is 0 to 2^−126, above 88 it is held at the largest power: masked scores
/// of −∞ give (almost) 0 and nothing overflows. Coefficients: Cephes `expf`, Moshier 1989.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.min(x, s.splat(88.0)), s.splat(-87.336_54));
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

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `tanh x` to about 1e-7 absolute: `1 − 2 / (e^2x + 1)`. Good as a gate, where it is added to 1;
/// relative accuracy near 0 is not kept.
#[inline(always)]
pub(crate) fn tanh_gate<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.add(x, x));
    let one = s.splat(1.0);
    s.sub(one, s.div(s.splat(2.0), s.add(e, one)))
}

/// The error function to 1.5e-7 absolute (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let abs = s.max(x, s.sub(zero, x));
    let t = s.div(one, s.fma(s.splat(0.327_591_1), abs, one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    let y = s.sub(one, s.mul(s.mul(p, t), exp(s, s.sub(zero, s.mul(abs, abs)))));
    s.select_gt(zero, x, s.sub(zero, y), y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernel, Scalar, dispatch};

    struct Table<'a>(&'a [f32], fn_kind::Kind);

    mod fn_kind {
        #[derive(Clone, Copy)]
        pub(super) enum Kind {
            Exp,
            Erf,
            Tanh,
        }
    }

    impl Kernel for Table<'_> {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = Vec::new();
            for &x in self.0 {
                let v = s.splat(x);
                out.push(match self.1 {
                    fn_kind::Kind::Exp => s.hmax(exp(s, v)),
                    fn_kind::Kind::Erf => s.hmax(erf(s, v)),
                    fn_kind::Kind::Tanh => s.hmax(tanh_gate(s, v)),
                });
            }
            out
        }
    }

    #[test]
    fn vector_functions_match_double_precision() {
        let xs: Vec<f32> = (-870..880).map(|i| i as f32 / 10.0 + 0.013).collect();
        for out in [dispatch(Table(&xs, fn_kind::Kind::Exp)), Table(&xs, fn_kind::Kind::Exp).run(Scalar)]
        {
            for (x, y) in xs.iter().zip(out) {
                let want = f64::from(*x).exp();
                assert!((f64::from(y) - want).abs() <= want * 2.5e-7, "exp({x}) = {y}, not {want}");
            }
        }
        let xs: Vec<f32> = (-600..600).map(|i| i as f32 / 100.0).collect();
        for (x, y) in xs.iter().zip(dispatch(Table(&xs, fn_kind::Kind::Erf))) {
            assert!((f64::from(y) - libm::erf(f64::from(*x))).abs() < 4e-7, "erf({x}) = {y}");
        }
        for (x, y) in xs.iter().zip(dispatch(Table(&xs, fn_kind::Kind::Tanh))) {
            assert!((f64::from(y) - f64::from(*x).tanh()).abs() < 4e-7, "tanh({x}) = {y}");
        }
    }
}
