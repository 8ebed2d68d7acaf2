use half::{bf16, f16};

use super::reference;
use crate::testing::{Case, Pair, golden_cases};
use crate::{DType, Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("cast", |params, _| match params.text("dtype") {
        Some("f16") => pair(&[DType::F16]),
        Some("bf16") => pair(&[DType::BF16]),
        other => panic!("no such type: {other:?}"),
    });
    for shape in [&[0][..], &[1], &[3, 5], &[40_000]] {
        for path in [
            &[DType::F16][..],
            &[DType::BF16],
            &[DType::F16, DType::BF16],
            &[DType::BF16, DType::F16],
            &[DType::F32],
        ] {
            let name = format!("{shape:?} through {path:?}");
            cases.push(Case::random(&name, &[shape.to_vec()], pair(path)));
        }
    }
    // Small enough to be subnormal in f16, and large enough to overflow there.
    for (name, factor) in [("tiny", 1e-6), ("huge", 3e4)] {
        let case = Case::random(name, &[vec![999]], pair(&[DType::F16]));
        cases.push(case.map_inputs(|x| (x * factor).clamp(-65_000.0, 65_000.0)));
    }
    // A staircase has no slope for finite differences.
    cases.into_iter().map(|case| case.not_smooth().tolerance(0.0, 0.0)).collect()
}

/// Casts along the path and back to f32.
fn pair(path: &[DType]) -> Pair {
    let (path, same) = (path.to_vec(), path.to_vec());
    Pair::one(
        move |x| path.iter().try_fold(x[0].clone(), |x, dtype| x.cast(*dtype))?.to_f32(),
        move |x| same.iter().fold(x[0].clone(), |x, dtype| reference::round(&x, *dtype)),
    )
}

#[test]
fn every_16_bit_pattern_survives_the_way_to_f32_and_back() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let mut halves = Tensor::uninit([all.len()], DType::F16).unwrap();
    for (x, bits) in halves.elements_mut::<f16>().iter_mut().zip(&all) {
        *x = f16::from_bits(*bits);
    }
    let back = halves.to_f32().unwrap().cast(DType::F16).unwrap();
    for (x, bits) in back.elements::<f16>().iter().zip(&all) {
        assert!(x.to_bits() == *bits || (x.is_nan() && f16::from_bits(*bits).is_nan()));
    }
    let mut brains = Tensor::uninit([all.len()], DType::BF16).unwrap();
    for (x, bits) in brains.elements_mut::<bf16>().iter_mut().zip(&all) {
        *x = bf16::from_bits(*bits);
    }
    let back = brains.to_f32().unwrap().cast(DType::BF16).unwrap();
    for (x, bits) in back.elements::<bf16>().iter().zip(&all) {
        assert!(x.to_bits() == *bits || (x.is_nan() && bf16::from_bits(*bits).is_nan()));
    }
}

#[test]
fn ties_go_to_even_and_special_values_stay_special() {
    let ulp = 1.0 / 128.0;
    let values =
        [1.0 + ulp / 2.0, 1.0 + ulp * 1.5, f32::MAX, f32::NEG_INFINITY, f32::NAN, -0.0, 1e-40];
    let x = Tensor::from_slice(&values, [7]).unwrap();
    let y = x.cast(DType::BF16).unwrap().to_f32().unwrap().to_vec();
    assert_eq!(y[..4], [1.0, 1.0 + 2.0 * ulp, f32::INFINITY, f32::NEG_INFINITY]);
    assert!(y[4].is_nan() && y[5].to_bits() == (-0.0f32).to_bits());
    for (y, x) in y.iter().zip(&values) {
        let want = bf16::from_f32(*x).to_f32();
        assert!(y.to_bits() == want.to_bits() || (y.is_nan() && want.is_nan()));
    }
}

#[test]
fn integers_cannot_be_cast_and_the_same_type_is_no_work() {
    let ids = Tensor::from_ids(&[1], [1]).unwrap();
    assert!(matches!(ids.to_f32(), Err(Error::DType { .. })));
    let x = Tensor::zeros([4]).unwrap();
    assert!(matches!(x.cast(DType::I32), Err(Error::Argument { .. })));
    assert_eq!(x.to_f32().unwrap().data().as_ptr(), x.data().as_ptr());
    let half = x.cast(DType::F16).unwrap();
    assert_eq!((half.dtype(), half.shape()), (DType::F16, x.shape()));
}
