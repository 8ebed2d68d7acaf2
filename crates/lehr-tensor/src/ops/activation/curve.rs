//! Activation functions on vectors: the value, and the value with the derivative.
//!
//! All keep their relative accuracy in the tails (nothing is subtracted from 1 to get a small
//! number), pass NaN on, and neither overflow nor give NaN for any finite input.

use lehr_kernels::math;
use lehr_kernels::simd::Simd;

/// One activation function.
pub(crate) trait Curve {
    /// `f(x)`.
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::V) -> S::V {
        Self::both(s, x).0
    }

    /// `f(x)` and `f'(x)`.
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V);
}

/// Beyond this magnitude the curves are straight to the last bit, so arguments of powers and
/// exponentials are clamped to it.
const STRAIGHT: f32 = 20.0;

/// `max(x, low)`, NaN if `x` is NaN.
#[inline(always)]
fn at_least<S: Simd>(s: S, x: S::V, low: f32) -> S::V {
    s.max(s.splat(low), x)
}

/// `x` clamped to `±limit`, NaN if `x` is NaN.
#[inline(always)]
fn within<S: Simd>(s: S, x: S::V, limit: f32) -> S::V {
    s.min(s.splat(limit), at_least(s, x, -limit))
}

/// `σ(x)` and `1 − σ(x)`, both to a few units in the last place.
#[inline(always)]
fn sigmoid_both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let e = math::exp(s, s.sub(s.splat(0.0), x));
    let r = s.div(one, s.add(one, e));
    (r, s.mul(e, r))
}

pub(crate) struct Relu;

impl Curve for Relu {
    #[inline(always)]
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        let zero = s.splat(0.0);
        (s.max(zero, x), s.select_gt(x, zero, s.splat(1.0), zero))
    }
}

pub(crate) struct Relu2;

impl Curve for Relu2 {
    #[inline(always)]
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        let r = s.max(s.splat(0.0), x);
        (s.mul(r, r), s.add(r, r))
    }
}

pub(crate) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        /// Where `exp` ends.
        const LIMIT: f32 = 88.0;
        let (sigmoid, rest) = sigmoid_both(s, x);
        let slope = s.fma(within(s, x, LIMIT), rest, s.splat(1.0));
        (s.mul(at_least(s, x, -LIMIT), sigmoid), s.mul(sigmoid, slope))
    }
}

pub(crate) struct GeluTanh;

impl Curve for GeluTanh {
    /// `x (1 + tanh u) / 2 = x σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`.
    #[inline(always)]
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        /// `2 √(2/π)`.
        const TWICE: f32 = 1.595_769;
        const CUBIC: f32 = TWICE * 0.044_715;
        let inner = within(s, x, STRAIGHT);
        let square = s.mul(inner, inner);
        let two_u = s.mul(inner, s.fma(s.splat(CUBIC), square, s.splat(TWICE)));
        let (sigmoid, rest) = sigmoid_both(s, two_u);
        let two_u_slope = s.fma(s.splat(3.0 * CUBIC), square, s.splat(TWICE));
        let slope = s.fma(s.mul(inner, rest), two_u_slope, s.splat(1.0));
        (s.mul(at_least(s, x, -STRAIGHT), sigmoid), s.mul(sigmoid, slope))
    }
}

pub(crate) struct GeluErf;

impl Curve for GeluErf {
    /// `x Φ(x)`, derivative `Φ(x) + x φ(x)`, with one exponential for Φ and φ.
    ///
    /// `Φ(−|x|) = e^(−x²/2) · t · Q(t)` with `t = 1 / (1 + 0.4 |x| / √2)`: Q is the least-maximum
    /// polynomial of degree 8 for `erfcx / (2 t)`, good to 1.3e-7 relative for all x.
    #[inline(always)]
    fn both<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        const Q: [f32; 9] = [
            0.025_149_963,
            -0.091_521_53,
            0.084_649_11,
            -0.002_885_855_5,
            0.070_750_31,
            0.084_263_18,
            0.103_922_22,
            0.112_834_76,
            0.112_837_93,
        ];
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let inner = within(s, x, STRAIGHT);
        let abs = s.max(inner, s.sub(zero, inner));
        let t = s.div(one, s.fma(s.splat(0.282_842_7), abs, one));
        let mut q = s.splat(Q[0]);
        for c in &Q[1..] {
            q = s.fma(q, t, s.splat(*c));
        }
        let e = math::exp(s, s.mul(s.mul(inner, inner), s.splat(-0.5)));
        let tail = s.mul(s.mul(q, t), e);
        let phi = s.select_gt(x, zero, s.sub(one, tail), tail);
        /// `1 / √(2π)`.
        const DENSITY: f32 = 0.398_942_3;
        let slope = s.fma(s.mul(inner, s.splat(DENSITY)), e, phi);
        (s.mul(at_least(s, x, -STRAIGHT), phi), slope)
    }
}
