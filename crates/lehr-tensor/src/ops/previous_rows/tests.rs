use std::ops::Range;

use super::{AtStart, Previous, reference};
use crate::testing::{Array, Case, Pair, golden_cases};
use crate::{Error, Tensor, no_grad};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("previous_rows", |params, _| {
        let channel = |name| params.number(name).unwrap() as usize;
        let at_start = if params.flag("own") { AtStart::Own } else { AtStart::Zero };
        pair(params.ids(0), channel("from")..channel("to"), at_start)
    });
    for at_start in [AtStart::Own, AtStart::Zero] {
        for (shape, channels) in [
            (&[0, 3, 2][..], 0..2),
            (&[1, 1, 1], 0..1),
            (&[2, 5, 3], 0..3),
            (&[2, 7, 3, 8], 4..8),
            (&[3, 4, 2, 5], 2..2),
            (&[2, 300, 4, 9], 1..7),
        ] {
            let n = shape[0] * shape[1];
            // A text begins at the first token of some rows, and within them.
            let starts: Vec<i32> = (0..n).map(|i| i32::from(i % 5 == 3 || i == 0)).collect();
            let starts = Tensor::from_ids(&starts, [shape[0], shape[1]]).unwrap();
            let name = format!("previous rows {shape:?} {channels:?} {at_start:?}");
            let pair = pair(starts, channels, at_start);
            cases.push(Case::random(&name, &[shape.to_vec()], pair).each(0.0));
        }
    }
    cases
}

fn pair(starts: Tensor, channels: Range<usize>, at_start: AtStart) -> Pair {
    let (same, also) = (starts.clone(), channels.clone());
    Pair::one(
        move |x| {
            let previous = Previous { starts: &starts, before: None };
            x[0].previous_rows(previous, channels.clone(), at_start)
        },
        move |x| reference::previous_rows(&x[0], None, same.ids(), &also, at_start),
    )
}

#[test]
fn the_first_tokens_get_the_rows_before_them_unless_a_text_begins_there() {
    let (shape, channels) = ([2, 3, 1, 4], 1..3);
    let x = Tensor::from_slice(&(0..24).map(|i| i as f32).collect::<Vec<_>>(), shape).unwrap();
    let rows: Vec<f32> = (0..8).map(|i| 100.0 + i as f32).collect();
    let before = Tensor::from_slice(&rows, [2, 1, 1, 4]).unwrap();
    let starts = Tensor::from_ids(&[0, 0, 1, 1, 0, 0], [2, 3]).unwrap();
    let previous = Previous { starts: &starts, before: Some(&before) };
    let wide = |x: &Tensor| Array {
        shape: x.shape().to_vec(),
        data: x.data().iter().map(|x| f64::from(*x)).collect(),
    };
    for at_start in [AtStart::Own, AtStart::Zero] {
        let y = no_grad(|| x.previous_rows(previous, channels.clone(), at_start)).unwrap();
        let (x, before) = (wide(&x), wide(&before));
        let want = reference::previous_rows(&x, Some(&before), starts.ids(), &channels, at_start);
        assert!(wide(&y).data == want.data && y.data()[1] == 101.0, "{y:?}");
    }
    let leaf = before.trainable();
    let previous = Previous { before: Some(&leaf), ..previous };
    let refused = x.previous_rows(previous, 0..1, AtStart::Own);
    assert!(matches!(refused, Err(Error::WantsGrad { name: "before", .. })));
}

#[test]
fn gpu_rows_before_the_first_tokens_are_those_of_the_cpu() {
    use crate::{Device, cuda};
    cuda::use_emulator();
    let there = |x: &Tensor| x.to_device(Device::Cuda(0)).unwrap();
    let x = Tensor::from_slice(&(0..24).map(|i| i as f32).collect::<Vec<_>>(), [2, 3, 4]).unwrap();
    let before = Tensor::full([2, 1, 4], 7.0).unwrap();
    let starts = Tensor::from_ids(&[0, 0, 1, 1, 0, 0], [2, 3]).unwrap();
    for at_start in [AtStart::Own, AtStart::Zero] {
        let run = |x: &Tensor, before: &Tensor| {
            let previous = Previous { starts: &starts, before: Some(before) };
            no_grad(|| x.previous_rows(previous, 1..4, at_start)).unwrap().to_host().unwrap()
        };
        assert_eq!(run(&x, &before).to_vec(), run(&there(&x), &there(&before)).to_vec());
    }
}

#[test]
fn channels_and_starts_that_do_not_fit_are_refused() {
    let x = Tensor::zeros([2, 3, 4]).unwrap();
    let starts = Tensor::from_ids(&[0; 6], [2, 3]).unwrap();
    let run = |starts: &Tensor, channels| {
        let previous = Previous { starts, before: None };
        x.previous_rows(previous, channels, AtStart::Own).unwrap_err()
    };
    assert!(matches!(run(&starts, 2..5), Error::Argument { name: "channels", .. }));
    let other = Tensor::from_ids(&[0; 6], [3, 2]).unwrap();
    assert!(matches!(run(&other, 0..1), Error::Shape { .. }));
    assert!(matches!(run(&x, 0..1), Error::DType { .. }));
}
