use std::sync::Arc;

use super::reference;
use crate::ops::linear::WeightLayout;
use crate::quant::{Activations, MatrixFormat, QMatrix, Scaling, WeightFormat};
use crate::testing::{Array, Case, Pair, hold_settings};
use crate::{DType, Device, Error, Philox, Tensor, available_isas, isa, no_grad, set_isa, threads};

fn formats() -> Vec<MatrixFormat> {
    let own = [
        MatrixFormat::Int8(Scaling::Row),
        MatrixFormat::Int8(Scaling::Group(32)),
        MatrixFormat::Int4(Scaling::Row),
        MatrixFormat::Int4(Scaling::DEFAULT),
        MatrixFormat::Int4(Scaling::Group(128)),
        MatrixFormat::Nf4,
    ];
    WeightFormat::ALL.into_iter().map(MatrixFormat::from).chain(own).collect()
}

fn matrix(format: MatrixFormat, rows: usize, cols: usize) -> QMatrix {
    let mut values = vec![0.0; rows * cols];
    Philox::new(9, cols as u64).fill_normal(&mut values, 0.5);
    QMatrix::from_f32(&values, rows, cols, format).unwrap()
}

fn numbers(w: &QMatrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * w.cols()];
    w.dequantize_rows(0..w.rows(), &mut out);
    out
}

/// Widths a format can have: one block, and several with a rest of the vectors if it can.
fn widths(format: MatrixFormat) -> Vec<usize> {
    let block = format.block_len();
    match block {
        256 => vec![256, 768],
        1 | 2 => vec![2, 34, 96, 300],
        n => vec![n, 3 * n, 9 * n],
    }
}

fn pair(w: QMatrix) -> Pair {
    let numbers = numbers(&w);
    let rows = w.rows();
    Pair::one(
        move |x| x[0].linear_q(&w, x.get(1)),
        move |x| reference::linear_q(&x[0], &numbers, rows, x.get(1)),
    )
}

/// With f32 activations the op is exact, so that its gradient can be checked closely.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, format) in formats().into_iter().enumerate() {
        let widths = widths(format);
        let cols = widths[i % widths.len()];
        for (x, rows) in [(vec![1, cols], 1), (vec![2, 3, cols], 7)] {
            let w = matrix(format, rows, cols).with_activations(Activations::F32);
            let n_inputs = 1 + usize::from(rows > 1);
            let shapes = &[x.clone(), vec![rows]][..n_inputs];
            let name = format!("linear_q {x:?} to {rows} in {format}");
            // The only output may be small beside its terms.
            cases.push(Case::random(&name, shapes, pair(w)).tolerance(2e-5, 2e-5));
        }
    }
    for (x, rows) in [(vec![0, 32], 3), (vec![4, 0], 3), (vec![2, 32], 0), (vec![40, 160], 70)] {
        let cols = x[x.len() - 1];
        let w = matrix(WeightFormat::Q8_0.into(), rows, cols).with_activations(Activations::F32);
        let name = format!("linear_q {x:?} to {rows}");
        cases.push(Case::random(&name, &[x, vec![rows]], pair(w)));
    }
    cases
}

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Philox::new(10, stream).fill_normal(&mut x, 1.0);
    x
}

/// What rounding activations to 8 bits makes of them.
fn rounded(x: &[f32], cols: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(cols) {
        for group in row.chunks(32) {
            let scale = group.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            out.extend(group.iter().map(|v| f64::from((v / scale).round_ties_even() * scale)));
        }
    }
    out
}

fn is_float(format: MatrixFormat) -> bool {
    use WeightFormat::{BF16, F16, F32};
    matches!(format, MatrixFormat::Nf4 | MatrixFormat::Gguf(F32 | F16 | BF16))
}

/// Every format, instruction set, and number of rows: against f64 with activations rounded in the
/// same way, closely; and against exact activations, at the promised error.
#[test]
fn integer_products_match_double_precision() {
    let _held = hold_settings();
    let before = isa();
    for which in available_isas() {
        set_isa(which).unwrap();
        for format in formats() {
            for cols in widths(format) {
                for n_x in [1, 3, 4, 7, 33, 65] {
                    let n_out = 37;
                    let w = matrix(format, n_out, cols);
                    let (x, bias) = (random(n_x * cols, 1), random(n_out, 2));
                    let y = Tensor::from_slice(&x, [n_x, cols]).unwrap();
                    let bias = Tensor::from_slice(&bias, [n_out]).unwrap();
                    let y = no_grad(|| y.linear_q(&w, Some(&bias)).unwrap());
                    let what = format!("{n_x} x {cols} in {format}, {which}");
                    compare(&what, &w, &x, &bias, y.data());
                }
            }
        }
    }
    set_isa(before).unwrap();
}

/// Fails unless `y` is close to the product of exact activations, and very close to that or to the
/// product of rounded ones: which of them a kernel computes depends on the number of rows.
fn compare(what: &str, w: &QMatrix, x: &[f32], bias: &Tensor, y: &[f32]) {
    let (cols, n_out, numbers) = (w.cols(), w.rows(), numbers(w));
    let doubles = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let bias = Array { shape: vec![n_out], data: doubles(bias.data()) };
    // Of an output of columns with deviation 1 and weights with deviation ½.
    let scale = 0.5 * (cols as f64).sqrt();
    let error = |x: Vec<f64>| {
        let x = Array { shape: vec![x.len() / cols, cols], data: x };
        let want = reference::linear_q(&x, &numbers, n_out, Some(&bias));
        let errors = y.iter().zip(&want.data).map(|(y, w)| (f64::from(*y) - w).abs() / scale);
        errors.fold(0.0, |worst: f64, e| if e > worst || e.is_nan() { e } else { worst })
    };
    let exact = error(doubles(x));
    assert!(exact <= 3e-2, "{what}: off by {exact:.2e} with exact activations");
    let few = x.len() / cols <= 4;
    let integers = !is_float(w.format()) && cols.is_multiple_of(32);
    if few && integers {
        // Codes next to a half may round either way: one step of 1/127 in few numbers.
        let rounded = error(rounded(x, cols));
        assert!(rounded <= 2e-3, "{what}: off by {rounded:.2e} with rounded activations");
    } else if exact > 5e-6 {
        let rounded = error(rounded(x, cols));
        let promised = integers && rounded <= 2e-3;
        assert!(promised, "{what}: off by {exact:.2e} and {rounded:.2e}");
    }
}

#[test]
fn threads_change_no_bit_of_an_integer_product() {
    let _held = hold_settings();
    for format in formats() {
        let cols = *widths(format).last().unwrap();
        let w = matrix(format, 700, cols);
        for n_x in [1, 3, 11, 70] {
            let x = Tensor::from_slice(&random(n_x * cols, 1), [n_x, cols]).unwrap();
            let mut results = Vec::new();
            for n_threads in [1, 2, 3] {
                threads::set_n_threads(n_threads);
                let y = x.linear_q(&w, None).unwrap();
                results.push(y.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            }
            assert!(results.iter().all(|r| *r == results[0]), "{n_x} rows in {format}");
        }
    }
}

/// A row is the same whatever other rows stand beside it, up to rounding.
#[test]
fn a_nan_shows_in_its_row_alone() {
    for n_x in [1, 4, 24] {
        let w = matrix(WeightFormat::Q4_K.into(), 5, 256);
        let mut x = random(n_x * 256, 3);
        x[40] = f32::NAN;
        let y = Tensor::from_slice(&x, [n_x, 256]).unwrap().linear_q(&w, None).unwrap();
        assert!(y.data()[..5].iter().all(|v| v.is_nan()), "{n_x} rows");
        assert!(y.data()[5..].iter().all(|v| v.is_finite()), "{n_x} rows");
    }
}

#[test]
fn embedding_gives_the_rows_of_the_table() {
    for format in formats() {
        let cols = widths(format)[0];
        let w = matrix(format, 9, cols);
        let numbers = numbers(&w);
        let y = w.embedding(&Tensor::from_ids(&[8, 0, 3, 3], [2, 2]).unwrap()).unwrap();
        assert_eq!(*y.shape(), [2, 2, cols]);
        let want = [8, 0, 3, 3].map(|i| &numbers[i * cols..(i + 1) * cols]).concat();
        assert_eq!(y.data(), want, "{format}");
    }
    let w = matrix(WeightFormat::Q8_0.into(), 3, 32);
    let outside = w.embedding(&Tensor::from_ids(&[0, 3], [2]).unwrap());
    assert!(matches!(outside, Err(Error::Index { index: 3, position: 1, limit: 3, .. })));
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let w = matrix(WeightFormat::Q8_0.into(), 3, 32);
    let x = Tensor::zeros([2, 31]).unwrap();
    assert!(matches!(x.linear_q(&w, None), Err(Error::Shape { op: "linear_q", .. })));
    let (x, bias) = (Tensor::zeros([2, 32]).unwrap(), Tensor::zeros([2]).unwrap());
    assert!(matches!(x.linear_q(&w, Some(&bias)), Err(Error::Shape { .. })));
    let ids = Tensor::from_ids(&[1], [1]).unwrap();
    assert!(matches!(ids.linear_q(&w, None), Err(Error::DType { .. })));
}

#[test]
fn stored_floats_in_bf16_give_the_bits_of_a_parameter_in_bf16() {
    let (rows, cols, n) = (37, 70, 9);
    let random = |shape: [usize; 2], stream| {
        let mut x = Tensor::zeros(shape).unwrap();
        Philox::new(7, stream).fill_normal(x.data_mut(), 1.0);
        x
    };
    let (x, dy, values) = (random([n, cols], 0), random([n, rows], 1), random([rows, cols], 2));
    let bias = random([1, rows], 3).reshape([rows]).unwrap();
    for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::BF16] {
        let stored = QMatrix::from_f32(values.data(), rows, cols, format).unwrap();
        stored.to_device(Device::Cpu, DType::BF16).unwrap();
        assert!(stored.is_in_bf16());
        let param = stored.to_f32().unwrap().with_panels(Some(Arc::default()));
        let run = |apply: &dyn Fn(&Tensor) -> Tensor| {
            let x = x.trainable();
            let y = apply(&x);
            let values = y.to_vec();
            y.backward_with(dy.clone()).unwrap();
            (values, x.grad().unwrap().to_vec())
        };
        let got = run(&|x| x.linear_q(&stored, Some(&bias)).unwrap());
        let want = run(&|x| x.linear(&param, WeightLayout::OutIn, Some(&bias)).unwrap());
        assert_eq!(got, want, "{format:?}");
        let one = x.slice(0, 3..4).unwrap().linear_q(&stored, Some(&bias)).unwrap();
        assert_eq!(one.to_vec(), got.0[3 * rows..4 * rows], "{format:?}: a row by itself");
        stored.to_device(Device::Cpu, DType::F32).unwrap();
        assert!(!stored.is_in_bf16());
    }
    let codes = QMatrix::from_f32(values.data(), rows, cols, MatrixFormat::Int8(Scaling::Row));
    let codes = codes.unwrap();
    codes.to_device(Device::Cpu, DType::BF16).unwrap();
    assert!(!codes.is_in_bf16(), "few-bit codes have products of their own");
}
