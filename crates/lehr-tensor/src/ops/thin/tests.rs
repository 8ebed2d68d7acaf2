use super::reference;
use crate::testing::{Array, Case, Pair, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [&[0][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]];
    for (name, pair) in [("add", add as fn() -> Pair), ("mul", mul)] {
        cases.extend(golden_cases(name, |_, _| pair()));
        for shape in shapes {
            let name = format!("{name} {shape:?}");
            cases.push(Case::random(&name, &[shape.to_vec(), shape.to_vec()], pair()));
        }
    }
    cases.extend(golden_cases("sum", |_, _| sum()));
    for shape in shapes {
        cases.push(Case::random(&format!("sum {shape:?}"), &[shape.to_vec()], sum()));
    }
    let reshape = Pair::one(
        |x| x[0].reshape([3, 4]),
        |x| Array { shape: vec![3, 4], data: x[0].data.clone() },
    );
    cases.push(Case::random("reshape", &[vec![2, 6]], reshape));
    cases
}

fn add() -> Pair {
    Pair::one(|x| x[0].add(&x[1]), |x| reference::zip(&x[0], &x[1], |a, b| a + b))
}

fn mul() -> Pair {
    Pair::one(|x| x[0].mul(&x[1]), |x| reference::zip(&x[0], &x[1], |a, b| a * b))
}

fn sum() -> Pair {
    Pair::one(|x| x[0].sum(), |x| reference::sum(&x[0]))
}
