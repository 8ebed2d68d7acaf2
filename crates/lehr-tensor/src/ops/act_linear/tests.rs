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
                let mut shapes = vec![x.to_vec(), weight];
                shapes.extend(bias.then(|| vec![n_out]));
                let name = format!("act_linear {activation:?} {x:?} to {n_out}, {layout:?}");
                cases.push(Case::random(&name, &shapes, pair(activation, layout, bias)));
            }
        }
    }
    cases
}

fn pair(activation: Activation, layout: WeightLayout, bias: bool) -> Pair {
    Pair::one(
        move |x| x[0].act_linear(activation, Affine::new(&x[1], layout, bias.then(|| &x[2]))),
        move |x| reference::act_linear(activation, &x[0], &x[1], layout, bias.then(|| &x[2])),
    )
}

#[test]
fn only_what_is_wanted_gets_a_gradient_and_it_is_the_same() {
    let random = |shape: [usize; 2], stream| {
        let mut x = Tensor::zeros(shape).unwrap();
        Philox::new(5, stream).fill_normal(x.data_mut(), 1.0);
        x
    };
    let (x, w) = (random([9, 20], 0), random([7, 20], 1));
    let grads = |x: &Tensor, w: &Tensor| {
        let y = x.act_linear(Activation::Silu, Affine::new(w, WeightLayout::OutIn, None)).unwrap();
        y.mul(&y).unwrap().sum().unwrap().backward().unwrap();
        (x.grad().map(|g| g.to_vec()), w.grad().map(|g| g.to_vec()))
    };
    let (dx, dw) = grads(&x.trainable(), &w.trainable());
    assert_eq!(grads(&x.trainable(), &w), (dx, None));
    assert_eq!(grads(&x, &w.trainable()), (None, dw));
}
