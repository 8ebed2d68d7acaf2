use super::frequencies::{Yarn, inverse_frequencies, linear_scaled, llama3_scaled, yarn_scaled};
use super::{RopeLayout, RopeTable, reference};
use crate::ops::embedding::tests::random_ids;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("rope", |params, _| {
        let number = |name| params.number(name);
        let rotary_dim = number("rotary_dim").unwrap_or(0.0) as usize / params.n_ids();
        let mut inv_freq =
            reference::inverse_frequencies(number("theta").unwrap_or(0.0), rotary_dim);
        if let Some(factor) = number("scaling_factor") {
            let [low, high, positions] =
                ["low_freq_factor", "high_freq_factor", "original_positions"]
                    .map(|name| number(name).unwrap_or(0.0));
            inv_freq = reference::llama3_scaled(&inv_freq, factor, low, high, positions);
        }
        match (params.n_ids(), params.text("style")) {
            (2, _) => two_dimensional(params.ids(0), params.ids(1), inv_freq),
            (_, Some("half_split")) => pair(params.ids(0), inv_freq, RopeLayout::HalfSplit, 1.0),
            (_, Some("adjacent")) => pair(params.ids(0), inv_freq, RopeLayout::AdjacentPairs, 1.0),
            other => panic!("no such style: {other:?}"),
        }
    });
    for (shape, rotary_dim) in [
        ([0, 4, 2, 8], 8),
        ([1, 1, 1, 2], 2),
        ([1, 1, 1, 1], 0),
        ([2, 3, 1, 6], 6),
        ([2, 5, 3, 17], 10),
        ([1, 33, 4, 64], 64),
        ([3, 40, 2, 130], 66),
    ] {
        let positions = random_ids(5000, &shape[..2]);
        let inv_freq = inverse_frequencies(10_000.0, rotary_dim);
        for layout in [RopeLayout::HalfSplit, RopeLayout::AdjacentPairs] {
            let name = format!("{shape:?}, {rotary_dim} rotated, {layout:?}");
            let pair = pair(positions.clone(), inv_freq.clone(), layout, 1.25);
            cases.push(Case::random(&name, &[shape.to_vec()], pair));
        }
    }
    for shape in [[0, 4, 2, 8], [1, 1, 1, 4], [2, 5, 3, 20], [1, 33, 4, 64]] {
        let (a, b) = (random_ids(500, &shape[..2]), random_ids(7, &shape[..2]));
        let pair = two_dimensional(a, b, inverse_frequencies(10_000.0, shape[3] / 2));
        cases.push(Case::random(&format!("two-dimensional {shape:?}"), &[shape.to_vec()], pair));
    }
    cases
}

fn pair(positions: Tensor, inv_freq: Vec<f64>, layout: RopeLayout, amplitude: f64) -> Pair {
    let (same, frequencies) = (positions.clone(), inv_freq.clone());
    Pair::one(
        move |x| x[0].rope(&RopeTable::new(&positions, &inv_freq, layout, amplitude)?),
        move |x| {
            let mut y = x[0].clone();
            let adjacent = layout == RopeLayout::AdjacentPairs;
            reference::rotate(&mut y, same.ids(), &frequencies, adjacent, amplitude, 0);
            y
        },
    )
}

fn two_dimensional(a: Tensor, b: Tensor, inv_freq: Vec<f64>) -> Pair {
    let (same_a, same_b, frequencies) = (a.clone(), b.clone(), inv_freq.clone());
    Pair::one(
        move |x| x[0].rope(&RopeTable::two_dimensional(&a, &b, &inv_freq)?),
        move |x| {
            let mut y = x[0].clone();
            let half = x[0].last_dim() / 2;
            reference::rotate(&mut y, same_a.ids(), &frequencies, false, 1.0, 0);
            reference::rotate(&mut y, same_b.ids(), &frequencies, false, 1.0, half);
            y
        },
    )
}

/// Equal to the rounding of f32: `pow` of two libraries may differ in the last place.
fn assert_near(got: impl IntoIterator<Item = f64>, want: &[f64]) {
    let got: Vec<_> = got.into_iter().collect();
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 2.5e-7 * w, "{g}, not {w}");
    }
}

// The numbers below are those of the formulas of Hugging Face transformers in PyTorch 2, f32.

#[test]
fn plain_and_linear_frequencies_have_the_known_values() {
    let inv_freq = inverse_frequencies(10_000.0, 16);
    let known = [
        1.0,
        0.316_227_763_891_220_1,
        0.100_000_001_490_116_12,
        0.031_622_778_624_296_19,
        0.009_999_999_776_482_582,
        0.003_162_277_862_429_619,
        0.001_000_000_047_497_451_3,
        0.000_316_227_786_242_961_9,
    ];
    assert_near(inv_freq.clone(), &known);
    assert_near(linear_scaled(&inv_freq, 4.0), &known.map(|w| w / 4.0));
    let long = inverse_frequencies(500_000.0, 128);
    assert_near(
        [0, 1, 2, 31, 32, 63].map(|i| long[i]),
        &[
            1.0,
            0.814_617_216_587_066_7,
            0.663_601_279_258_728,
            0.001_736_046_746_373_176_6,
            0.001_414_213_445_968_926,
            2.455_140_702_295_466_3e-6,
        ],
    );
}

#[test]
fn llama_3_frequencies_have_the_known_values() {
    let scaled = llama3_scaled(&inverse_frequencies(500_000.0, 16), 8.0, 1.0, 4.0, 8192.0);
    assert_near(
        scaled,
        &[
            1.0,
            0.193_922_758_102_417,
            0.037_606_030_702_590_94,
            0.007_292_665_075_510_74,
            0.000_524_846_022_017_300_1,
            3.428_102_354_519_069e-5,
            6.647_869_668_086_059e-6,
            1.289_173_155_782_919e-6,
        ],
    );
    // Llama 3.2 1B with heads of 128: the whole ramp.
    let scaled = llama3_scaled(&inverse_frequencies(500_000.0, 128), 32.0, 1.0, 4.0, 8192.0);
    let known = [
        (20, 0.016_560_440_883_040_428),
        (28, 0.003_211_446_106_433_868_4),
        (29, 0.002_118_406_817_317_009),
        (30, 0.001_290_548_010_729_253_3),
        (31, 0.000_762_541_254_516_691),
        (32, 0.000_429_556_705_057_621),
        (33, 0.000_222_763_410_420_157_02),
        (34, 9.708_286_233_944_818e-5),
        (35, 2.389_053_042_861_633e-5),
        (36, 1.946_163_865_795_824_7e-5),
        (63, 7.672_314_694_673_332e-8),
    ];
    assert_near(known.map(|k| scaled[k.0]), &known.map(|k| k.1));
}

#[test]
fn frequencies_are_those_of_double_precision_rounded() {
    for (theta, dim) in [(10_000.0, 2), (10_000.0, 64), (500_000.0, 128), (1e6, 80)] {
        let (plain, exact) =
            (inverse_frequencies(theta, dim), reference::inverse_frequencies(theta, dim));
        assert_eq!(plain.len(), dim / 2);
        for factors in [(8.0, 1.0, 4.0, 8192.0), (32.0, 1.0, 4.0, 8192.0), (8.0, 1.0, 4.0, 32.0)] {
            let (factor, low, high, positions) = factors;
            let scaled = llama3_scaled(&plain, factor, low, high, positions);
            let want = reference::llama3_scaled(&exact, factor, low, high, positions);
            for (got, want) in plain.iter().chain(&scaled).zip(exact.iter().chain(&want)) {
                // Six roundings, one of them of a difference.
                assert!((got - want).abs() <= 1e-6 * want, "{got}, not {want}");
                assert_eq!(*got, f64::from(*got as f32));
            }
        }
    }
}

#[test]
fn yarn_frequencies_have_the_known_values() {
    let (short, amplitude) = yarn_scaled(10_000.0, 16, &Yarn::new(4.0, 64.0));
    assert_near(
        short,
        &[
            1.0,
            0.237_170_815_467_834_47,
            0.049_999_997_019_767_76,
            0.007_905_694_656_074_047,
            0.002_499_999_944_120_645_5,
            0.000_790_569_465_607_404_7,
            0.000_250_000_011_874_362_8,
            7.905_694_656_074_047e-5,
        ],
    );
    assert_near([amplitude], &[1.138_629_436_111_989]);
    let (qwen, _) = yarn_scaled(1e6, 128, &Yarn::new(4.0, 32_768.0));
    let known = [
        (10, 0.115_478_202_700_614_93),
        (23, 0.006_978_305_988_013_744),
        (30, 0.001_064_360_956_661_403_2),
        (39, 6.490_394_298_452_884e-5),
        (40, 4.445_698_505_151_085_6e-5),
        (63, 3.102_344_408_034_696e-7),
    ];
    assert_near(known.map(|k| qwen[k.0]), &known.map(|k| k.1));
    let untruncated = Yarn { truncate: false, ..Yarn::new(32.0, 4096.0) };
    let (oss, _) = yarn_scaled(150_000.0, 64, &untruncated);
    let known = [
        (8, 0.050_813_272_595_405_58),
        (9, 0.031_705_696_135_759_354),
        (12, 0.006_794_959_306_716_919),
        (17, 0.000_129_318_694_234_825_67),
        (18, 3.830_881_178_146_228e-5),
        (31, 3.023_511_396_804_679e-7),
    ];
    assert_near(known.map(|k| oss[k.0]), &known.map(|k| k.1));
}

#[test]
fn the_attention_factor_of_yarn_follows_the_configuration() {
    let yarn = Yarn::new(40.0, 4096.0);
    let amplitude = |yarn: Yarn| yarn_scaled(1e4, 64, &yarn).1;
    assert_near([amplitude(Yarn { attention_factor: Some(1.5), ..yarn })], &[1.5]);
    let deepseek = Yarn { mscale: Some(0.707), mscale_all_dim: Some(1.414), ..yarn };
    let m = |k: f64| 0.1 * k * 40f64.ln() + 1.0;
    assert_near([amplitude(deepseek)], &[m(0.707) / m(1.414)]);
    assert_near([amplitude(Yarn { mscale: Some(0.707), ..yarn })], &[m(1.0)]);
    assert_near([amplitude(Yarn::new(0.5, 4096.0))], &[1.0]);
}

#[test]
fn scores_depend_on_the_distance_of_the_tokens_only() {
    let heads = Case::random("", &[vec![1, 2, 1, 8]], pair_of_nothing()).inputs.remove(0);
    let score = |p: i32, q: i32| {
        let positions = Tensor::from_ids(&[p, q], [1, 2]).unwrap();
        let inv_freq = inverse_frequencies(100.0, 8);
        let table = RopeTable::new(&positions, &inv_freq, RopeLayout::HalfSplit, 1.0).unwrap();
        let y = heads.rope(&table).unwrap().to_vec();
        y[..8].iter().zip(&y[8..]).map(|(a, b)| a * b).sum::<f32>()
    };
    assert!((score(3, 10) - score(1003, 1010)).abs() < 1e-5);
    assert!((score(3, 10) - score(3, 11)).abs() > 1e-3);
}

fn pair_of_nothing() -> Pair {
    Pair::one(|x| Ok(x[0].clone()), |x| x[0].clone())
}

#[test]
fn tables_that_do_not_fit_are_errors() {
    let positions = Tensor::from_ids(&[0, 1], [1, 2]).unwrap();
    let inv_freq = inverse_frequencies(1e4, 8);
    let table = RopeTable::new(&positions, &inv_freq, RopeLayout::HalfSplit, 1.0).unwrap();
    assert_eq!((table.n_tokens(), table.rotary_dim()), (2, 8));
    for shape in [&[1, 3, 1, 8][..], &[1, 2, 1, 6], &[2, 8]] {
        assert!(matches!(Tensor::zeros(shape).unwrap().rope(&table), Err(Error::Rank { .. })));
    }
    let floats = Tensor::zeros([1, 2]).unwrap();
    let refused = |positions, amplitude| {
        RopeTable::new(positions, &inv_freq, RopeLayout::HalfSplit, amplitude).unwrap_err()
    };
    assert!(matches!(refused(&floats, 1.0), Error::DType { .. }));
    assert!(matches!(refused(&positions, f64::NAN), Error::Argument { .. }));
    let other = Tensor::from_ids(&[0], [1, 1]).unwrap();
    let uneven = RopeTable::two_dimensional(&positions, &other, &inv_freq);
    assert!(matches!(uneven, Err(Error::Shape { .. })));
    // Two halves of 4 dimensions are a head of 8, not more.
    let planar = RopeTable::two_dimensional(&positions, &positions, &inv_freq[..2]).unwrap();
    assert!(Tensor::zeros([1, 2, 1, 8]).unwrap().rope(&planar).is_ok());
    assert!(Tensor::zeros([1, 2, 1, 10]).unwrap().rope(&planar).is_err());
}
