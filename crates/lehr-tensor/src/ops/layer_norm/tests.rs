use super::reference;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("layer_norm", |params, n_inputs| {
        pair(n_inputs > 2, params.number("eps").unwrap_or(0.0) as f32)
    });
    for shape in [&[0, 4][..], &[3, 0], &[1, 1], &[3, 5], &[2, 3, 17], &[70, 384], &[5, 1000]] {
        let d = shape[shape.len() - 1];
        for bias in [false, true] {
            let mut shapes = vec![shape.to_vec(), vec![d]];
            shapes.extend(bias.then(|| vec![d]));
            cases.push(Case::random(&format!("{shape:?}, bias {bias}"), &shapes, pair(bias, 1e-5)));
        }
    }
    // Rows far from 0: a variance computed as mean(x²) − mean² would have no correct digit. The
    // input itself has only 24 bits for the distance from 1000, hence the wider tolerance.
    let shifted = Case::random("shifted", &[vec![4, 65], vec![65]], pair(false, 1e-5));
    let mut shifted = shifted.tolerance(1e-4, 1e-4);
    shifted.inputs[0].data_mut().iter_mut().for_each(|x| *x += 1000.0);
    cases.push(shifted);
    cases
}

fn pair(bias: bool, eps: f32) -> Pair {
    Pair::one(
        move |x| x[0].layer_norm(&x[1], bias.then(|| &x[2]), eps),
        move |x| reference::layer_norm(&x[0], &x[1], bias.then(|| &x[2]), f64::from(eps)),
    )
}

#[test]
fn a_weight_or_bias_of_another_width_is_an_error() {
    let x = Tensor::zeros([2, 3]).unwrap();
    let (good, bad) = (Tensor::zeros([3]).unwrap(), Tensor::zeros([4]).unwrap());
    assert!(matches!(x.layer_norm(&bad, None, 1e-5), Err(Error::Shape { .. })));
    assert!(matches!(x.layer_norm(&good, Some(&bad), 1e-5), Err(Error::Shape { .. })));
}

#[test]
fn a_frozen_weight_gets_no_gradient_but_its_bias_does() {
    let x = Tensor::from_slice(&[1.0, 2.0, 4.0, 3.0], [2, 2]).unwrap();
    let weight = Tensor::full([2], 2.0).unwrap();
    let bias = Tensor::zeros([2]).unwrap().trainable();
    let y = x.layer_norm(&weight, Some(&bias), 1e-5).unwrap();
    y.sum().unwrap().backward().unwrap();
    assert_eq!(bias.grad().unwrap().to_vec(), [2.0, 2.0]);
    assert!(weight.grad().is_none() && x.grad().is_none());
}
