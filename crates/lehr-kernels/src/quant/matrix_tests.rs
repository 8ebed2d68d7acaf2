//! Matrices and lehr's own formats.

use std::sync::Arc;

use super::tests::{normal, relative_rms};
use super::{MatrixFormat, Scaling, StoredMatrix, WeightFormat};
use crate::{Error, threads};

const OWN: [MatrixFormat; 7] = [
    MatrixFormat::Int8(Scaling::Row),
    MatrixFormat::Int8(Scaling::Group(64)),
    MatrixFormat::Int4(Scaling::Row),
    MatrixFormat::Int4(Scaling::Group(32)),
    MatrixFormat::Int4(Scaling::Group(64)),
    MatrixFormat::Int4(Scaling::Group(128)),
    MatrixFormat::Nf4,
];

fn numbers(w: &StoredMatrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * w.cols()];
    w.dequantize_rows(0..w.rows(), &mut out);
    out
}

#[test]
fn normal_numbers_come_back_with_the_error_of_the_format() {
    let x = normal(256 * 512);
    // Relative to the root mean square, from a simulation with NumPy; INT by rows depends on the
    // width, here 512.
    let wanted = [0.00743, 0.00594, 0.1347, 0.0970, 0.1077, 0.1174, 0.0919];
    for (format, want) in OWN.into_iter().zip(wanted) {
        let w = StoredMatrix::from_f32(&x, 256, 512, format).unwrap();
        let error = relative_rms(&x, &numbers(&w));
        assert!((error / want - 1.0).abs() < 0.03, "{format}: {error:.4}");
    }
}

/// The example of GLM-130B's weights: scale = max |w| / 7 of a row, the even column of two in the
/// upper half of a byte, negative numbers in two's complement.
#[test]
fn int4_has_the_layout_of_glm() {
    let x = [7.0, -7.0, 3.0, -1.0, 0.5, 0.25, -0.5, 0.0];
    let w = StoredMatrix::from_f32(&x, 2, 4, MatrixFormat::Int4(Scaling::Row)).unwrap();
    assert_eq!(w.bytes(), [0x79, 0x3F, 0x74, 0x90]);
    // The second scale, 1/14, is rounded to f16.
    let scale = half::f16::from_f32(0.5 / 7.0).to_f32();
    assert_eq!(w.scales(), [1.0, scale]);
    let want = [7.0, -7.0, 3.0, -1.0, 7.0 * scale, 4.0 * scale, -7.0 * scale, 0.0];
    assert_eq!(numbers(&w), want);
    assert_eq!((w.row_bytes(), w.n_bytes()), (2, 4 + 8));
}

#[test]
fn nf4_keeps_its_levels_and_the_largest_number() {
    let mut x: Vec<f32> = (0..64).map(|i| super::NF4[i % 16] * 3.0).collect();
    let w = StoredMatrix::from_f32(&x, 1, 64, MatrixFormat::Nf4).unwrap();
    assert_eq!(w.bytes()[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]);
    assert_eq!((numbers(&w), w.scales()), (x.clone(), &[3.0][..]));
    x.fill(0.0);
    let w = StoredMatrix::from_f32(&x, 1, 64, MatrixFormat::Nf4).unwrap();
    assert_eq!(numbers(&w), x);
}

#[test]
fn rows_come_alone_or_together() {
    let x = normal(9 * 512);
    for format in OWN.into_iter().chain([WeightFormat::Q6_K.into(), WeightFormat::F16.into()]) {
        let w = StoredMatrix::from_f32(&x, 9, 512, format).unwrap();
        let all = numbers(&w);
        let mut some = vec![0.0; 3 * 512];
        w.dequantize_rows(4..7, &mut some);
        assert_eq!(some, all[4 * 512..7 * 512], "{format}");
        w.dequantize_rows(9..9, &mut []);
    }
}

#[test]
fn threads_change_no_byte_of_own_formats() {
    let _held = crate::testing::hold_settings();
    let before = threads::n_threads();
    let x = normal(100 * 512);
    for format in OWN {
        let results = [1, 3].map(|n| {
            threads::set_n_threads(n);
            let w = StoredMatrix::from_f32(&x, 100, 512, format).unwrap();
            (w.bytes().to_vec(), w.scales().to_vec())
        });
        assert_eq!(results[0], results[1], "{format}");
    }
    threads::set_n_threads(before);
}

#[test]
fn a_matrix_shares_the_bytes_of_its_owner() {
    let x = normal(2 * 32);
    let mut file = vec![0xFF; 100];
    let mut bytes = vec![0; 68];
    WeightFormat::Q8_0.quantize(&x, &mut bytes);
    file[7..75].copy_from_slice(&bytes);
    let file = Arc::new(file);
    let w = StoredMatrix::new(WeightFormat::Q8_0, 2, 32, file.clone(), 7..75, vec![]).unwrap();
    assert_eq!(w.bytes().as_ptr(), file[7..].as_ptr());
    assert_eq!(
        numbers(&w),
        numbers(&StoredMatrix::from_f32(&x, 2, 32, WeightFormat::Q8_0).unwrap())
    );
}

#[test]
fn what_does_not_fit_is_an_error() {
    let file: Arc<Vec<u8>> = Arc::new(vec![0; 100]);
    let new = |format: MatrixFormat, rows, cols, range, n_scales| {
        StoredMatrix::new(format, rows, cols, file.clone(), range, vec![1.0; n_scales])
    };
    let (q8, int4) = (WeightFormat::Q8_0.into(), MatrixFormat::Int4(Scaling::Row));
    assert!(new(q8, 2, 32, 0..68, 0).is_ok() && new(int4, 2, 6, 94..100, 2).is_ok());
    for (bad, name) in [
        (new(q8, 2, 32, 0..67, 0), "range of bytes"),
        (new(q8, 2, 32, 40..108, 0), "range of bytes"),
        (new(q8, usize::MAX / 2, 64, 0..68, 0), "number of rows"),
        (new(q8, 2, 33, 0..68, 0), "number of columns"),
        (new(WeightFormat::Q4_K.into(), 1, 128, 0..72, 0), "number of columns"),
        (new(q8, 2, 32, 0..68, 1), "number of scales"),
        (new(int4, 2, 6, 0..6, 1), "number of scales"),
        (new(int4, 2, 5, 0..5, 2), "number of columns"),
        (new(MatrixFormat::Int4(Scaling::Group(48)), 1, 48, 0..24, 1), "group"),
        (new(MatrixFormat::Int8(Scaling::Group(0)), 1, 48, 0..48, 1), "group"),
        (StoredMatrix::from_f32(&[0.0; 63], 2, 32, q8), "number of values"),
    ] {
        let Err(Error::Argument { op: "QMatrix", name: found, .. }) = bad else {
            panic!("{name}: {bad:?}");
        };
        assert_eq!(found, name);
    }
}

#[test]
fn a_format_whose_blocks_do_not_fit_gives_way_to_the_nearest() {
    use WeightFormat::{F16, Q4_0, Q4_K, Q5_0, Q6_K, Q8_0};
    let fitting = |format: MatrixFormat, width| format.fallback_for(width);
    assert_eq!(fitting(Q4_K.into(), 512), Q4_K.into());
    assert_eq!(fitting(Q4_K.into(), 576), Q5_0.into());
    assert_eq!(fitting(Q6_K.into(), 96), Q8_0.into());
    assert_eq!(fitting(Q4_K.into(), 100), F16.into());
    let (int8, int4) = (MatrixFormat::Int8, MatrixFormat::Int4);
    assert_eq!(fitting(int8(Scaling::DEFAULT), 128), int8(Scaling::Group(64)));
    assert_eq!(fitting(int4(Scaling::DEFAULT), 96), int4(Scaling::Group(32)));
    assert_eq!(fitting(int4(Scaling::DEFAULT), 100), int4(Scaling::Row));
    assert_eq!(fitting(MatrixFormat::Nf4, 96), Q4_0.into());
    // Whatever it gives, rows of that width can be stored in it.
    for width in [2, 32, 96, 100, 256, 576] {
        let row: Vec<f32> = (0..width).map(|i| (i as f32 * 0.3).sin()).collect();
        for format in WeightFormat::ALL.map(MatrixFormat::Gguf).into_iter().chain([
            int8(Scaling::DEFAULT),
            int4(Scaling::DEFAULT),
            MatrixFormat::Nf4,
        ]) {
            let fits = format.fallback_for(width);
            assert!(
                StoredMatrix::from_f32(&row, 1, width, fits).is_ok(),
                "{format}, {width}: {fits}"
            );
        }
    }
}
