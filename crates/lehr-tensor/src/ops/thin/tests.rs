use super::reference;
use crate::testing::{Array, Case, Pair, golden_cases};
use crate::{Result, Tensor};

const SHAPES: [&[usize]; 5] = [&[0], &[1], &[3, 5], &[7, 11, 13], &[40_000]];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    binary(&mut cases, "add", Tensor::add, |a, b| a + b);
    binary(&mut cases, "sub", Tensor::sub, |a, b| a - b);
    binary(&mut cases, "mul", Tensor::mul, |a, b| a * b);
    binary(&mut cases, "div", Tensor::div, |a, b| a / b);
    unary(&mut cases, "neg", Tensor::neg, |x| -x);
    unary(&mut cases, "exp", Tensor::exp, f64::exp);
    unary(&mut cases, "log", Tensor::log, f64::ln);
    unary(&mut cases, "tanh", Tensor::tanh, f64::tanh);
    unary(&mut cases, "sigmoid", Tensor::sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
    cases.extend(golden_cases("scale", |params, _| scale(params.number("factor").unwrap() as f32)));
    cases.push(Case::random("scale", &[vec![3, 17]], scale(-0.3)));
    let sum = || Pair::one(|x| x[0].sum(), |x| reference::sum(&x[0]));
    let mean = || Pair::one(|x| x[0].mean(), |x| reference::mean(&x[0]));
    cases.extend(golden_cases("sum", |_, _| sum()));
    cases.extend(golden_cases("mean", |_, _| mean()));
    for shape in SHAPES {
        cases.push(Case::random(&format!("sum {shape:?}"), &[shape.to_vec()], sum()));
        if shape != [0] {
            cases.push(Case::random(&format!("mean {shape:?}"), &[shape.to_vec()], mean()));
        }
    }
    matmul_cases(&mut cases);
    transpose_cases(&mut cases);
    let reshape = Pair::one(
        |x| x[0].reshape([3, 4]),
        |x| Array { shape: vec![3, 4], data: x[0].data.clone() },
    );
    cases.push(Case::random("reshape", &[vec![2, 6]], reshape));
    cases
}

type Binary = fn(&Tensor, &Tensor) -> Result<Tensor>;
type Unary = fn(&Tensor) -> Result<Tensor>;

fn binary(cases: &mut Vec<Case>, name: &str, fast: Binary, slow: fn(f64, f64) -> f64) {
    let pair =
        || Pair::one(move |x| fast(&x[0], &x[1]), move |x| reference::zip(&x[0], &x[1], slow));
    cases.extend(golden_cases(name, |_, _| pair()));
    for shape in SHAPES {
        let case = Case::random(&format!("{name} {shape:?}"), &vec![shape.to_vec(); 2], pair());
        let case = case.each(1e-7);
        cases.push(if name == "div" { case.map_inputs(away_from_zero) } else { case });
    }
}

fn unary(cases: &mut Vec<Case>, name: &str, fast: Unary, slow: fn(f64) -> f64) {
    let pair = || Pair::one(move |x| fast(&x[0]), move |x| reference::map(&x[0], slow));
    cases.extend(golden_cases(name, |_, _| pair()));
    for shape in SHAPES {
        let case = Case::random(&format!("{name} {shape:?}"), &[shape.to_vec()], pair());
        let case = case.each(3e-7);
        cases.push(if name == "log" { case.map_inputs(|x| x.abs() + 0.25) } else { case });
    }
}

/// Keeps divisors off the pole.
fn away_from_zero(x: f32) -> f32 {
    x + 0.25f32.copysign(x)
}

fn scale(factor: f32) -> Pair {
    Pair::one(
        move |x| x[0].scale(factor),
        move |x| reference::map(&x[0], |x| x * f64::from(factor)),
    )
}

fn matmul_cases(cases: &mut Vec<Case>) {
    let pair = || Pair::one(|x| x[0].matmul(&x[1]), |x| reference::matmul(&x[0], &x[1]));
    cases.extend(golden_cases("matmul", |_, _| pair()));
    for (lead, m, k, n) in [
        (&[][..], 1, 1, 1),
        (&[0], 2, 3, 4),
        (&[2], 0, 3, 4),
        (&[2], 3, 0, 4),
        (&[2, 3], 17, 33, 9),
    ] {
        let shapes = [[lead, &[m, k]].concat(), [lead, &[k, n]].concat()];
        cases.push(Case::random(&format!("matmul {shapes:?}"), &shapes, pair()));
    }
    let squared = Pair::one(|x| x[0].matmul(&x[0]), |x| reference::matmul(&x[0], &x[0]));
    cases.push(Case::random("matmul of a matrix with itself", &[vec![2, 9, 9]], squared));
}

fn transpose_cases(cases: &mut Vec<Case>) {
    let pair = |first, second| {
        Pair::one(
            move |x| x[0].transpose(first, second),
            move |x| reference::transpose(&x[0], first, second),
        )
    };
    cases.extend(golden_cases("transpose", |params, _| {
        let dim = |name| params.number(name).unwrap() as usize;
        pair(dim("dim0"), dim("dim1"))
    }));
    for (shape, first, second) in [
        (&[1][..], 0, 0),
        (&[0, 3], 0, 1),
        (&[3, 0, 2], 0, 2),
        (&[3, 5], 1, 0),
        (&[2, 3, 4, 5], 1, 3),
        (&[2, 3, 4, 5], 1, 1),
        (&[150, 301], 0, 1),
        (&[2, 70, 9, 33], 1, 2),
    ] {
        let name = format!("transpose {shape:?} {first} {second}");
        cases.push(Case::random(&name, &[shape.to_vec()], pair(first, second)));
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape).unwrap();
    assert!(zeros(&[2, 3]).matmul(&zeros(&[2, 3])).is_err());
    assert!(zeros(&[2, 2, 3]).matmul(&zeros(&[3, 4])).is_err());
    assert!(zeros(&[3]).matmul(&zeros(&[3, 4])).is_err());
    assert!(zeros(&[2, 3]).transpose(0, 2).is_err());
    assert!(zeros(&[2, 3]).sub(&zeros(&[3, 2])).is_err());
    assert!(zeros(&[0]).mean().is_err());
}
