//! Ops whose kernels see a row, or a number, at a time.

use lehr_tensor::ops::activation::Activation;
use lehr_tensor::ops::rope::frequencies::inverse_frequencies;
use lehr_tensor::ops::rope::{RopeLayout, RopeTable};
use lehr_tensor::quant::{QMatrix, WeightFormat};
use lehr_tensor::{Isa, Tensor};

use super::support::{assert_rows_independent, normal, on_every_isa, pick};

const N: usize = 70;
const SIZES: [usize; 8] = [1, 2, 3, 5, 16, 33, 64, 70];

#[test]
fn norms_curves_and_softmax() {
    on_every_isa(|isa| {
        for d in [1, 7, 33, 576, 1000] {
            norms(isa, d);
            curves(isa, d);
        }
    });
}

fn norms(isa: Isa, d: usize) {
    let (x, delta) = (normal(&[N, d], 1), normal(&[N, d], 2));
    let (weight, bias) = (normal(&[d], 3), normal(&[d], 4));
    let check = |op: &str, f: &dyn Fn(&[usize]) -> Tensor| {
        assert_rows_independent(&format!("{isa}: {op} of {d}"), N, SIZES, f);
    };
    check("rms_norm", &|rows| pick(&x, rows).rms_norm(&weight, 1e-5, 0.0).unwrap());
    check("layer_norm", &|rows| pick(&x, rows).layer_norm(&weight, Some(&bias), 1e-5).unwrap());
    check("add_rms_norm", &|rows| {
        let (sum, y) =
            pick(&x, rows).add_rms_norm(&pick(&delta, rows), &weight, 1e-5, 1.0).unwrap();
        assert_eq!(*sum.shape(), *y.shape());
        y
    });
    check("add_layer_norm", &|rows| {
        let delta = pick(&delta, rows);
        pick(&x, rows).add_layer_norm(&delta, &weight, Some(&bias), 1e-5).unwrap().1
    });
}

fn curves(isa: Isa, d: usize) {
    let (x, up) = (normal(&[N, d], 5), normal(&[N, d], 6));
    let check = |op: &str, f: &dyn Fn(&[usize]) -> Tensor| {
        assert_rows_independent(&format!("{isa}: {op} of {d}"), N, SIZES, f);
    };
    check("softmax", &|rows| pick(&x, rows).softmax().unwrap());
    check("softcap", &|rows| pick(&x, rows).softcap(2.0).unwrap());
    check("silu", &|rows| pick(&x, rows).activation(Activation::Silu).unwrap());
    check("gated", &|rows| pick(&x, rows).gated(&pick(&up, rows), Activation::GeluTanh).unwrap());
}

#[test]
fn embedding_and_rope() {
    on_every_isa(|isa| {
        let d = 96;
        let table = normal(&[N, d], 7);
        let ids = |rows: &[usize]| {
            let ids: Vec<i32> = rows.iter().map(|r| *r as i32).collect();
            Tensor::from_ids(&ids, [1, rows.len()]).unwrap()
        };
        assert_rows_independent(&format!("{isa}: embedding"), N, SIZES, |rows| {
            table.embedding(&ids(rows)).unwrap()
        });
        let stored = QMatrix::from_f32(table.data(), N, d, WeightFormat::Q8_0).unwrap();
        assert_rows_independent(&format!("{isa}: stored embedding"), N, SIZES, |rows| {
            stored.embedding(&ids(rows)).unwrap()
        });
        let frequencies = inverse_frequencies(10_000.0, 32);
        for layout in [RopeLayout::HalfSplit, RopeLayout::AdjacentPairs] {
            assert_rows_independent(&format!("{isa}: rope {layout:?}"), N, SIZES, |rows| {
                let x = pick(&table, rows).reshape([1, rows.len(), 2, 48]).unwrap();
                // Positions far apart.
                let positions: Vec<i32> = rows.iter().map(|r| (r * r * 7) as i32).collect();
                let positions = Tensor::from_ids(&positions, [1, rows.len()]).unwrap();
                let table = RopeTable::new(&positions, &frequencies, layout, 1.0).unwrap();
                x.rope(&table).unwrap()
            });
        }
    });
}
