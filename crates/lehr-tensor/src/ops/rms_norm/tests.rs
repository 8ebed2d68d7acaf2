use super::reference;
use crate::testing::{Case, Pair, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("rms_norm", |params, _| {
        pair(
            params.number("eps").unwrap_or(1e-5) as f32,
            params.number("offset").unwrap_or(0.0) as f32,
        )
    });
    for shape in [&[0, 4][..], &[1, 1], &[3, 5], &[2, 3, 17], &[70, 384], &[5, 1000]] {
        let shapes = [shape.to_vec(), vec![shape[shape.len() - 1]]];
        cases.push(Case::random(&format!("{shape:?}"), &shapes, pair(1e-5, 0.0)));
    }
    cases
}

fn pair(eps: f32, offset: f32) -> Pair {
    Pair::one(
        move |x| x[0].rms_norm(&x[1], eps, offset),
        move |x| reference::rms_norm(&x[0], &x[1], f64::from(eps), f64::from(offset)),
    )
}
