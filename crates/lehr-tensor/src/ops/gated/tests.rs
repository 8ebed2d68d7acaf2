use super::reference;
use crate::ops::activation::{Activation, GeluKind, tests::ALL};
use crate::testing::{Case, Pair, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("swiglu", |_, _| {
        Pair::one(|x| x[0].swiglu(&x[1]), |x| reference::gated(Activation::Silu, &x[0], &x[1]))
    });
    for (file, kind) in [("geglu_tanh", GeluKind::Tanh), ("geglu_erf", GeluKind::Erf)] {
        cases.extend(golden_cases(file, |_, _| {
            Pair::one(
                move |x| x[0].geglu(&x[1], kind),
                move |x| reference::gated(kind.into(), &x[0], &x[1]),
            )
        }));
    }
    for activation in ALL {
        for shape in [&[0, 3][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]] {
            let name = format!("gated {activation:?} {shape:?}");
            cases.push(Case::random(&name, &[shape.to_vec(), shape.to_vec()], pair(activation)));
        }
    }
    cases
}

fn pair(activation: Activation) -> Pair {
    Pair::one(
        move |x| x[0].gated(&x[1], activation),
        move |x| reference::gated(activation, &x[0], &x[1]),
    )
}
