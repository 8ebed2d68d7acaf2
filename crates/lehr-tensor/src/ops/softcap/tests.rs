use lehr_kernels::simd::{Kernel, Simd, dispatch};

use super::{cpu, reference};
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("softcap", |params, _| pair(params.number("cap").unwrap() as f32));
    for shape in [&[0, 3][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]] {
        cases.push(Case::random(&format!("softcap {shape:?}"), &[shape.to_vec()], pair(0.7)));
    }
    let twice = Pair::one(
        |x| x[0].softcap(2.0)?.add(&x[0].softcap(2.0)?),
        |x| {
            let mut y = reference::softcap(&x[0], 2.0);
            y.data.iter_mut().for_each(|y| *y *= 2.0);
            y
        },
    );
    cases.push(Case::random("softcap of an input used twice", &[vec![5, 7]], twice));
    cases.into_iter().map(|case| case.each(3e-7)).collect()
}

fn pair(cap: f32) -> Pair {
    Pair::one(move |x| x[0].softcap(cap), move |x| reference::softcap(&x[0], f64::from(cap)))
}

struct Tanh<'a>(&'a [f32]);

impl Kernel for Tanh<'_> {
    type Out = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = Vec::new();
        for x in self.0 {
            out.push(s.hmax(cpu::tanh(s, s.splat(*x))));
        }
        out
    }
}

#[test]
fn tanh_is_accurate_relative_to_itself_everywhere() {
    let mut xs: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 331.0).collect();
    xs.extend([1e-30, -1e-12, 1e-5, 0.6249, 0.6251, -50.0, 1000.0, f32::MAX]);
    for (x, y) in xs.iter().zip(dispatch(Tanh(&xs))) {
        let want = f64::from(*x).tanh();
        assert!((f64::from(y) - want).abs() <= 3e-7 * want.abs(), "tanh({x}) = {y}, not {want}");
    }
}

#[test]
fn a_cap_that_is_not_positive_is_refused() {
    let x = Tensor::zeros([2]).unwrap();
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(x.softcap(cap), Err(Error::Argument { name: "softcap", .. })));
    }
}
