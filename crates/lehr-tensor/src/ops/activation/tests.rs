use lehr_kernels::simd::{Kernel, Simd, dispatch};

use super::curve::Curve;
use super::{Activation, cpu, reference, with_curve};
use crate::testing::{Case, Pair, golden_cases};

pub(crate) const ALL: [Activation; 5] = [
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::Silu,
    Activation::Relu,
    Activation::Relu2,
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("gelu", |params, _| match params.text("approximate") {
        Some("tanh") => pair(Activation::GeluTanh),
        Some("erf") => pair(Activation::GeluErf),
        other => panic!("a golden of gelu {other:?}"),
    });
    cases.extend(golden_cases("silu", |_, _| pair(Activation::Silu)));
    cases.extend(golden_cases("relu2", |_, _| pair(Activation::Relu2)));
    for activation in ALL {
        for shape in [&[0, 3][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]] {
            let name = format!("{activation:?} {shape:?}");
            let case = Case::random(&name, &[shape.to_vec()], pair(activation));
            let case = case.map_inputs(|x| 3.0 * x);
            cases.push(if has_exact_tails(activation) { case.each(EACH) } else { case });
        }
    }
    // An input used twice: the second gradient is added to the first.
    let twice = Pair::one(
        |x| x[0].activation(Activation::Silu)?.add(&x[0].activation(Activation::Relu2)?),
        |x| {
            let mut y = reference::activation(Activation::Silu, &x[0]);
            let other = reference::activation(Activation::Relu2, &x[0]);
            y.data.iter_mut().zip(other.data).for_each(|(y, o)| *y += o);
            y
        },
    );
    cases.push(Case::random("silu + relu2", &[vec![5, 19]], twice));
    cases
}

/// Relative error of each output; 1.9e-7 was measured.
pub(crate) const EACH: f64 = 3e-7;

/// Whether small values keep their relative precision. A GELU is x times 1 plus nearly −1 there.
pub(crate) fn has_exact_tails(activation: Activation) -> bool {
    !matches!(activation, Activation::GeluTanh | Activation::GeluErf)
}

fn pair(activation: Activation) -> Pair {
    Pair::one(
        move |x| x[0].activation(activation),
        move |x| reference::activation(activation, &x[0]),
    )
}

#[test]
fn tails_keep_their_relative_accuracy() {
    let xs: Vec<f32> = (-960..=960).map(|i| i as f32 / 160.0 + 0.001).collect();
    for activation in ALL {
        let mut ys = vec![0.0; xs.len()];
        cpu::forward(activation, &xs, &mut ys);
        for (x, y) in xs.iter().zip(&ys) {
            let want = match activation {
                // 1 + tanh(u) cancels in the tail, even in f64.
                Activation::GeluTanh => {
                    let x = f64::from(*x);
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                    x / (1.0 + (-2.0 * u).exp())
                }
                _ => reference::value(activation, f64::from(*x)),
            };
            let error = (f64::from(*y) - want).abs();
            // The exponent itself, up to 20 here, is rounded to f32: 20 times 6e-8, and some.
            assert!(error <= 4e-6 * want.abs(), "{activation:?}({x}) = {y}, not {want}");
        }
    }
}

struct Both(Activation, f32);

impl Kernel for Both {
    type Out = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let (value, slope) = with_curve!(self.0, C => C::both(s, s.splat(self.1)));
        (s.sum(value) / S::LANES as f32, s.sum(slope) / S::LANES as f32)
    }
}

#[test]
fn huge_inputs_stay_finite_and_nan_is_passed_on() {
    for activation in ALL {
        for x in [-1e18, -200.0, -88.5, 88.5, 200.0, 1e18] {
            let (value, slope) = dispatch(Both(activation, x));
            let square = activation == Activation::Relu2;
            let (want, want_slope) = match (x > 0.0, square) {
                (true, false) => (x, 1.0),
                (true, true) => (x * x, 2.0 * x),
                (false, _) => (0.0, 0.0),
            };
            assert!(
                (value - want).abs() <= 1e-6 * want.abs() + 1e-30,
                "{activation:?}({x}) = {value}"
            );
            assert!(
                (slope - want_slope).abs() <= 1e-6 * want_slope.max(1.0),
                "{activation:?}'({x}) = {slope}"
            );
        }
        assert!(dispatch(Both(activation, f32::NAN)).0.is_nan(), "{activation:?} hides NaN");
    }
}
