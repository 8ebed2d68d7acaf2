//! Linear maps, with weights in f32 and in every stored format.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::linear::{Affine, WeightLayout};
use lehr_tensor::quant::{Activations, MatrixFormat, QMatrix, Scaling, WeightFormat};
use lehr_tensor::{Isa, Tensor};

use super::support::{assert_rows_independent, normal, on_every_isa, pick, sizes};

/// Rows in the whole.
const N: usize = 70;

fn weight(n_out: usize, n_in: usize, layout: WeightLayout) -> Tensor {
    match layout {
        WeightLayout::OutIn => normal(&[n_out, n_in], 2),
        WeightLayout::InOut => normal(&[n_in, n_out], 2),
    }
}

#[test]
fn linear() {
    let shapes = [(1, 1), (5, 17), (33, 64), (70, 300), (130, 513), (48, 1040), (16, 1601)];
    on_every_isa(|isa| {
        for (n_out, n_in) in shapes {
            let x = normal(&[N, n_in], 1);
            for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
                let w = weight(n_out, n_in, layout);
                for bias in [None, Some(normal(&[n_out], 3))] {
                    let what = format!("{isa}: linear [{n_out}, {n_in}] {layout:?}");
                    let f = |rows: &[usize]| pick(&x, rows).linear(&w, layout, bias.as_ref());
                    assert_rows_independent(&what, N, sizes(isa), |rows| f(rows).unwrap());
                }
            }
        }
    });
}

#[test]
fn linear_with_an_activation_before_or_between() {
    let (d, f) = (45, 530);
    let curves = [Activation::Silu, Activation::Relu, Activation::GeluTanh, Activation::Relu2];
    on_every_isa(|isa| {
        let (x, gate, up) = (normal(&[N, d], 1), normal(&[N, f], 2), normal(&[N, f], 3));
        let (first, second) = (normal(&[f, d], 4), normal(&[d, f], 5));
        let bias = normal(&[d], 6);
        let down = Affine::new(&second, WeightLayout::OutIn, Some(&bias));
        let up_map = Affine::new(&first, WeightLayout::OutIn, None);
        let sizes = || sizes(isa).into_iter().filter(|m| m % 7 <= 1);
        for curve in curves {
            let what = |op: &str| format!("{isa}: {op} with {curve:?}");
            assert_rows_independent(&what("gated_linear"), N, sizes(), |rows| {
                pick(&gate, rows).gated_linear(&pick(&up, rows), curve, down).unwrap()
            });
            assert_rows_independent(&what("act_linear"), N, sizes(), |rows| {
                pick(&gate, rows).act_linear(curve, down).unwrap()
            });
            assert_rows_independent(&what("feed_forward"), N, sizes(), |rows| {
                pick(&x, rows).feed_forward(up_map, curve, down).unwrap()
            });
        }
        assert_rows_independent(&format!("{isa}: GELU"), N, sizes(), |rows| {
            pick(&gate, rows).activation(Activation::GeluErf).unwrap()
        });
    });
}

fn formats() -> Vec<MatrixFormat> {
    let own = [
        MatrixFormat::Int8(Scaling::Row),
        MatrixFormat::Int8(Scaling::Group(32)),
        MatrixFormat::Int8(Scaling::Group(64)),
        MatrixFormat::Int4(Scaling::Row),
        MatrixFormat::Int4(Scaling::Group(32)),
        MatrixFormat::Int4(Scaling::Group(128)),
        MatrixFormat::Nf4,
    ];
    WeightFormat::ALL.into_iter().map(MatrixFormat::from).chain(own).collect()
}

/// Rows of weights and columns: below and beyond a quad of 128 and a pass of 512 columns, with
/// rests of vectors and of blocks of rows.
fn shapes(format: MatrixFormat) -> Vec<(usize, usize)> {
    let of = |cols: usize| cols.next_multiple_of(format.block_len());
    let mut shapes = vec![(37, of(32)), (70, of(544)), (19, of(1100))];
    if format.block_len() == 1 {
        shapes.push((21, 530));
    }
    shapes
}

#[test]
fn linear_with_stored_weights() {
    on_every_isa(|isa| {
        for format in formats() {
            for (rows, cols) in shapes(format) {
                for activations in [Activations::Int8, Activations::F32] {
                    stored(isa, format, (rows, cols), activations);
                }
            }
        }
    });
}

fn stored(isa: Isa, format: MatrixFormat, (rows, cols): (usize, usize), activations: Activations) {
    let values = normal(&[rows, cols], 4);
    let w = QMatrix::from_f32(values.data(), rows, cols, format).unwrap();
    let w = w.with_activations(activations);
    let x = normal(&[N, cols], 5);
    let bias = normal(&[rows], 6);
    let what = format!("{isa}: {format} [{rows}, {cols}] with {activations:?}");
    let few = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 20, 21, 22, 33, 63, 64, 65, 70];
    for bias in [None, Some(&bias)] {
        let sizes = few.into_iter().filter(|m| isa != Isa::Scalar || m % 4 == 1);
        assert_rows_independent(&what, N, sizes, |rows| pick(&x, rows).linear_q(&w, bias).unwrap());
    }
}
