use super::reference;
use crate::ops::activation::Activation;
use crate::ops::activation::tests::{ALL, EACH, has_exact_tails};
use crate::testing::{Case, Pair, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("swiglu", |_, _| pair(Activation::Silu));
    cases.extend(golden_cases("geglu_tanh", |_, _| pair(Activation::GeluTanh)));
    cases.extend(golden_cases("geglu_erf", |_, _| pair(Activation::GeluErf)));
    for activation in ALL {
        for shape in [&[0, 3][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]] {
            let name = format!("gated {activation:?} {shape:?}");
            let case = Case::random(&name, &[shape.to_vec(), shape.to_vec()], pair(activation));
            cases.push(if has_exact_tails(activation) { case.each(EACH) } else { case });
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
