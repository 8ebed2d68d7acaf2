use super::reference;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases =
        golden_cases("concat", |params, _| pair(params.number("dim").unwrap_or(0.0) as usize));
    for (shape, dim, extents) in [
        (&[3, 4][..], 0, &[2, 0, 5][..]),
        (&[3, 4], 1, &[1, 6]),
        (&[0, 4], 1, &[2, 3]),
        (&[1], 0, &[1, 1, 1]),
        (&[7], 0, &[7]),
        (&[2, 5, 3, 2], 2, &[1, 4]),
        (&[2, 5, 300], 1, &[70, 9]),
        (&[3, 300], 0, &[200, 1]),
    ] {
        let part = |n: &usize| [&shape[..dim], &[*n], &shape[dim + 1..]].concat();
        let shapes: Vec<_> = extents.iter().map(part).collect();
        cases.push(Case::random(&format!("{shape:?} at {dim}: {extents:?}"), &shapes, pair(dim)));
    }
    cases
}

fn pair(dim: usize) -> Pair {
    Pair::one(
        move |x| Tensor::concat(&x.iter().collect::<Vec<_>>(), dim),
        move |x| reference::concat(x, dim),
    )
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let (a, b) = (Tensor::zeros([2, 3]).unwrap(), Tensor::zeros([3, 2]).unwrap());
    let c = Tensor::zeros([2]).unwrap();
    assert!(matches!(Tensor::concat(&[], 0), Err(Error::Argument { .. })));
    assert!(matches!(Tensor::concat(&[&a, &b], 0), Err(Error::Shape { .. })));
    assert!(matches!(Tensor::concat(&[&a, &c], 0), Err(Error::Shape { .. })));
    assert!(matches!(Tensor::concat(&[&a], 2), Err(Error::Rank { .. })));
}

#[test]
fn a_tensor_joined_with_itself_gets_both_gradients() {
    let x = Tensor::zeros([2, 2]).unwrap().trainable();
    Tensor::concat(&[&x, &x], 1).unwrap().sum().unwrap().backward().unwrap();
    assert_eq!(x.grad().unwrap().to_vec(), [2.0; 4]);
}
