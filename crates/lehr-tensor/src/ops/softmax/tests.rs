use super::reference;
use crate::Tensor;
use crate::testing::{Case, Pair, golden_cases};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("softmax", |_, _| pair());
    for shape in
        [&[0, 3][..], &[3, 0], &[1], &[3, 5], &[2, 3, 17], &[70, 385], &[3, 5000], &[2, 40_000]]
    {
        cases.push(Case::random(&format!("softmax {shape:?}"), &[shape.to_vec()], pair()));
    }
    let twice = Pair::one(
        |x| x[0].softmax()?.add(&x[0].softmax()?),
        |x| {
            let mut y = reference::softmax(&x[0]);
            y.data.iter_mut().for_each(|y| *y *= 2.0);
            y
        },
    );
    cases.push(Case::random("softmax of an input used twice", &[vec![5, 7]], twice));
    cases.into_iter().map(|case| case.each(1.6e-6)).collect()
}

fn pair() -> Pair {
    Pair::one(|x| x[0].softmax(), |x| reference::softmax(&x[0]))
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let x = Tensor::from_slice(&[-3e38, 3e38, 3e38, f32::NEG_INFINITY], [1, 4]).unwrap();
    let y = x.softmax().unwrap().to_vec();
    assert!(y[1] == 0.5 && y[2] == 0.5 && y[0] < 1e-37 && y[3] < 1e-37, "{y:?}");
    // Rising blocks: every block rescales the sum.
    let rising: Vec<f32> = (0..10_000).map(|i| i as f32 / 100.0).collect();
    let y = Tensor::from_slice(&rising, [1, 10_000]).unwrap().softmax().unwrap();
    let sum: f64 = y.data().iter().map(|v| f64::from(*v)).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
}
