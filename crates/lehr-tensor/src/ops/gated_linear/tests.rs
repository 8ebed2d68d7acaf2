use super::reference;
use crate::ops::activation::{Activation, tests::ALL};
use crate::ops::linear::{Affine, WeightLayout};
use crate::testing::{Case, Pair};
use crate::{Philox, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (x, n_out) in [(&[0, 5][..], 3), (&[1, 1], 1), (&[2, 3, 7], 5), (&[130, 70], 131)] {
        let n_in = x[x.len() - 1];
        for (i, activation) in ALL.into_iter().enumerate() {
            let bias = i % 2 == 0;
            for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
                let weight = match layout {
                    WeightLayout::OutIn => vec![n_out, n_in],
                    WeightLayout::InOut => vec![n_in, n_out],
                };
                let mut shapes = vec![x.to_vec(), x.to_vec(), weight];
                shapes.extend(bias.then(|| vec![n_out]));
                let name = format!("gated_linear {activation:?} {x:?} to {n_out}, {layout:?}");
                cases.push(Case::random(&name, &shapes, pair(activation, layout, bias)));
            }
        }
    }
    cases
}

fn pair(activation: Activation, layout: WeightLayout, bias: bool) -> Pair {
    Pair::one(
        move |x| {
            x[0].gated_linear(&x[1], activation, Affine::new(&x[2], layout, bias.then(|| &x[3])))
        },
        move |x| {
            let bias = bias.then(|| &x[3]);
            reference::gated_linear(activation, &x[0], &x[1], &x[2], layout, bias)
        },
    )
}

#[test]
fn only_what_is_wanted_gets_a_gradient_and_it_is_the_same() {
    let random = |shape: [usize; 2], stream| {
        let mut x = Tensor::zeros(shape).unwrap();
        Philox::new(5, stream).fill_normal(x.data_mut(), 1.0);
        x
    };
    let inputs = [random([9, 20], 0), random([9, 20], 1), random([7, 20], 2)];
    let grads = |wanted: &[bool; 3]| {
        let x: Vec<_> = inputs
            .iter()
            .zip(wanted)
            .map(|(x, wanted)| if *wanted { x.trainable() } else { x.clone() })
            .collect();
        let layout = WeightLayout::OutIn;
        let y = x[0]
            .gated_linear(&x[1], Activation::GeluTanh, Affine::new(&x[2], layout, None))
            .unwrap();
        y.mul(&y).unwrap().sum().unwrap().backward().unwrap();
        x.iter().map(|x| x.grad().map(|g| g.to_vec())).collect::<Vec<_>>()
    };
    let all = grads(&[true; 3]);
    for wanted in [[true, false, false], [false, true, true], [false, false, true]] {
        for ((got, all), wanted) in grads(&wanted).iter().zip(&all).zip(wanted) {
            assert_eq!(*got, all.clone().filter(|_| wanted));
        }
    }
}
