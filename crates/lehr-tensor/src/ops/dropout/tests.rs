use super::reference;
use crate::testing::{Case, Pair};
use crate::{Error, Philox, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[0, 4][..], &[1], &[3, 5], &[2, 33, 7], &[40_001]] {
        for p in [0.0, 0.1, 0.5, 0.9] {
            let name = format!("{shape:?}, p {p}");
            let case = Case::random(&name, &[shape.to_vec()], pair(p, Philox::new(5, 3)));
            cases.push(case.each(2e-7));
        }
    }
    cases
}

fn pair(p: f32, rng: Philox) -> Pair {
    Pair::one(move |x| x[0].dropout(p, &rng), move |x| reference::dropout(&x[0], p, &rng))
}

#[test]
fn the_share_of_zeros_and_the_mean_are_as_asked() {
    let n = 200_000;
    let x = Tensor::full([n], 1.0).unwrap();
    let y = x.dropout(0.3, &Philox::new(1, 2)).unwrap().to_vec();
    let zeros = y.iter().filter(|y| **y == 0.0).count() as f64 / n as f64;
    let mean = y.iter().map(|y| f64::from(*y)).sum::<f64>() / n as f64;
    // Five standard deviations of the share are 0.005.
    assert!((zeros - 0.3).abs() < 0.005 && (mean - 1.0).abs() < 0.01, "{zeros} zeros, mean {mean}");
}

#[test]
fn streams_differ_and_a_stream_repeats() {
    let x = Tensor::full([100], 1.0).unwrap();
    let draw = |stream| x.dropout(0.5, &Philox::new(1, stream)).unwrap().to_vec();
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn an_infinite_value_that_is_dropped_becomes_0() {
    let x = Tensor::full([64], f32::INFINITY).unwrap();
    let y = x.dropout(0.5, &Philox::new(1, 2)).unwrap().to_vec();
    assert!(y.iter().all(|y| *y == 0.0 || *y == f32::INFINITY));
}

#[test]
fn a_probability_outside_of_0_to_1_is_an_error() {
    let x = Tensor::zeros([1]).unwrap();
    for p in [-0.1, 1.0, 2.0, f32::NAN] {
        assert!(matches!(x.dropout(p, &Philox::new(0, 0)), Err(Error::Argument { .. })));
    }
}
