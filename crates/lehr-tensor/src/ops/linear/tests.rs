use super::{WeightLayout, reference};
use crate::Tensor;
use crate::testing::{Case, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases =
        golden_cases("linear", |_, n_inputs| with_layout(WeightLayout::OutIn, n_inputs > 2));
    for (x, n_out) in [
        (&[0, 5][..], 3),
        (&[1, 1], 1),
        (&[2, 3, 7], 5),
        (&[4, 33], 17),
        (&[37, 65], 31),
        (&[300, 70], 130),
        (&[129, 300], 257),
    ] {
        let n_in = x[x.len() - 1];
        for bias in [false, true] {
            let mut shapes = vec![x.to_vec(), vec![n_out, n_in]];
            shapes.extend(bias.then(|| vec![n_out]));
            let name = format!("{x:?} to {n_out}, bias {bias}");
            cases.push(Case::random(&name, &shapes, with_layout(WeightLayout::OutIn, bias)));
            shapes[1].swap(0, 1);
            let name = format!("{name}, [in, out]");
            cases.push(Case::random(&name, &shapes, with_layout(WeightLayout::InOut, bias)));
        }
    }
    cases
}

fn with_layout(layout: WeightLayout, bias: bool) -> crate::testing::Pair {
    crate::testing::Pair::one(
        move |x| x[0].linear(&x[1], layout, bias.then(|| &x[2])),
        move |x| reference::linear(&x[0], &x[1], layout, bias.then(|| &x[2])),
    )
}

#[test]
fn an_input_that_was_written_again_is_rounded_again() {
    let weight = Tensor::from_slice(&[1.0; 3], [1, 3]).unwrap();
    let weight = weight.with_panels(Some(Default::default()));
    let mut x = Tensor::from_slice(&[1.0, 2.0, 3.0], [1, 3]).unwrap();
    let sum = |x: &Tensor| x.linear(&weight, WeightLayout::OutIn, None).unwrap().to_vec();
    assert_eq!((sum(&x), sum(&x)), (vec![6.0], vec![6.0]));
    x.data_mut()[0] = 5.0;
    assert_eq!(sum(&x), [10.0]);
    let other = Tensor::from_slice(&[4.0, 4.0, 4.0], [1, 3]).unwrap();
    assert_eq!((sum(&other), sum(&x)), (vec![12.0], vec![10.0]));
}
