use std::ops::Range;

use super::reference;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("slice", |params, _| {
        let number = |name| params.number(name).unwrap_or(0.0) as usize;
        pair(number("dim"), number("start")..number("end"))
    });
    for (shape, dim, range) in [
        (&[3, 4][..], 0, 1..3),
        (&[3, 4], 1, 2..2),
        (&[3, 4], 1, 0..4),
        (&[0, 4], 1, 1..2),
        (&[1], 0, 0..1),
        (&[2, 5, 3, 2], 2, 1..3),
        (&[2, 90, 300], 1, 7..78),
        (&[200, 300], 0, 3..150),
        (&[70, 7], 1, 6..7),
    ] {
        let name = format!("{shape:?} at {dim}: {range:?}");
        cases.push(Case::random(&name, &[shape.to_vec()], pair(dim, range)));
    }
    cases
}

fn pair(dim: usize, range: Range<usize>) -> Pair {
    let same = range.clone();
    Pair::one(move |x| x[0].slice(dim, range.clone()), move |x| reference::slice(&x[0], dim, &same))
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "such a range is what must be refused")]
fn ranges_outside_of_the_dimension_are_errors() {
    let x = Tensor::zeros([2, 3]).unwrap();
    for range in [0..4, 2..1, 4..4] {
        assert!(matches!(x.slice(1, range), Err(Error::Argument { .. })));
    }
    assert!(matches!(x.slice(2, 0..0), Err(Error::Rank { .. })));
}

#[test]
fn overlapping_slices_add_their_gradients() {
    let x = Tensor::zeros([4]).unwrap().trainable();
    let a = x.slice(0, 0..3).unwrap();
    let b = x.slice(0, 1..4).unwrap();
    a.add(&b).unwrap().sum().unwrap().backward().unwrap();
    assert_eq!(x.grad().unwrap().to_vec(), [1.0, 2.0, 2.0, 1.0]);
}
