use super::reference::add;
use crate::ops::layer_norm::reference::layer_norm;
use crate::ops::rms_norm::reference::rms_norm;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("add_norm", |params, n_inputs| {
        let number = |name| params.number(name).unwrap_or(0.0) as f32;
        match params.text("norm") {
            Some("rms") => rms(number("eps"), number("offset"), &[0, 1]),
            Some("layer") => layer(n_inputs > 3, number("eps"), &[0, 1]),
            other => panic!("no such norm: {other:?}"),
        }
    });
    for shape in [&[0, 4][..], &[3, 0], &[1, 1], &[3, 5], &[2, 3, 17], &[70, 384], &[5, 1000]] {
        let d = shape[shape.len() - 1];
        // A model may use the sum alone (the last block) or the norm alone.
        for used in [&[0, 1][..], &[0], &[1]] {
            let shapes = vec![shape.to_vec(), shape.to_vec(), vec![d]];
            let name = format!("rms {shape:?}, outputs {used:?}");
            // With one column all but eps cancels in the gradient, so eps must not be small.
            let eps = if d == 1 { 0.5 } else { 1e-5 };
            cases.push(Case::random(&name, &shapes, rms(eps, 1.0, used)));
            let name = format!("layer {shape:?}, outputs {used:?}");
            cases.push(Case::random(&name, &shapes, layer(false, 1e-5, used)));
            let shapes = vec![shape.to_vec(), shape.to_vec(), vec![d], vec![d]];
            let name = format!("layer with bias {shape:?}, outputs {used:?}");
            cases.push(Case::random(&name, &shapes, layer(true, 1e-5, used)));
        }
    }
    cases
}

/// The outputs of these numbers.
fn pick<T: Clone>(outputs: &[T; 2], used: &[usize]) -> Vec<T> {
    used.iter().map(|i| outputs[*i].clone()).collect()
}

fn rms(eps: f32, offset: f32, used: &'static [usize]) -> Pair {
    let (eps_64, offset_64) = (f64::from(eps), f64::from(offset));
    Pair::many(
        move |x| Ok(pick(&x[0].add_rms_norm(&x[1], &x[2], eps, offset)?.into(), used)),
        move |x| {
            let sum = add(&x[0], &x[1]);
            let normed = rms_norm(&sum, &x[2], eps_64, offset_64);
            pick(&[sum, normed], used)
        },
    )
}

fn layer(bias: bool, eps: f32, used: &'static [usize]) -> Pair {
    Pair::many(
        move |x| {
            let bias = bias.then(|| &x[3]);
            Ok(pick(&x[0].add_layer_norm(&x[1], &x[2], bias, eps)?.into(), used))
        },
        move |x| {
            let sum = add(&x[0], &x[1]);
            let normed = layer_norm(&sum, &x[2], bias.then(|| &x[3]), f64::from(eps));
            pick(&[sum, normed], used)
        },
    )
}

/// The gradient of the sum is shared with another node, so it must not be written in place.
#[test]
fn a_shared_gradient_of_the_sum_is_left_alone() {
    let x = Tensor::from_slice(&[1.0, -2.0, 0.5, 3.0], [2, 2]).unwrap().trainable();
    let delta = Tensor::full([2, 2], 0.25).unwrap().trainable();
    let other = Tensor::zeros([2, 2]).unwrap().trainable();
    let weight = Tensor::from_slice(&[1.0, 2.0], [2]).unwrap();
    let (sum, normed) = x.add_rms_norm(&delta, &weight, 1e-5, 0.0).unwrap();
    let last = sum.add(&other).unwrap().sum().unwrap();
    last.add(&normed.sum().unwrap()).unwrap().backward().unwrap();
    assert_eq!(other.grad().unwrap().to_vec(), [1.0; 4]);
    assert_eq!(x.grad().unwrap().to_vec(), delta.grad().unwrap().to_vec());
    assert_ne!(x.grad().unwrap().to_vec(), [1.0; 4]);
}

#[test]
fn terms_of_different_shapes_are_an_error() {
    let x = Tensor::zeros([2, 3]).unwrap();
    let (delta, weight) = (Tensor::zeros([3, 2]).unwrap(), Tensor::zeros([3]).unwrap());
    assert!(matches!(x.add_rms_norm(&delta, &weight, 1e-5, 0.0), Err(Error::Shape { .. })));
    assert!(matches!(x.add_layer_norm(&delta, &weight, None, 1e-5), Err(Error::Shape { .. })));
}
