use super::*;
use crate::{Philox, available_isas, isa, set_isa};

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Philox::new(1, stream).fill_uniform(&mut values, 1.0);
    values
}

fn naive(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let mut sum = f64::from(c[i * n + j]) + bias.map_or(0.0, |b| f64::from(b[j]));
            for p in 0..k {
                let x = a.data[i * a.row_stride + p * a.col_stride];
                let y = b.data[p * b.row_stride + j * b.col_stride];
                sum += f64::from(x) * f64::from(y);
            }
            out.push(sum);
        }
    }
    out
}

#[test]
fn products_of_all_layouts_and_odd_sizes_match_double_precision() {
    let _held = crate::testing::hold_settings();
    let sizes = [1, 2, 3, 5, 7, 13, 14, 15, 16, 31, 33, 65];
    let before = isa();
    for which in available_isas() {
        set_isa(which).unwrap();
        for (t, &m) in sizes.iter().enumerate() {
            for (u, &n) in sizes.iter().enumerate() {
                let k = [1, 2, 17, 255, 256, 257, 300][(t + u) % 7];
                check((m, n, k), t % 2 == 0);
            }
        }
        check((150, 4200, 9), true);
        check((4100, 40, 6), false);
    }
    set_isa(before).unwrap();
}

fn check((m, n, k): (usize, usize, usize), accumulate: bool) {
    let (a, b, start) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
    let bias = random(n, 4);
    let a_forms = [Matrix::rows(&a, k), Matrix::transposed(&a, m)];
    let b_forms = [Matrix::rows(&b, n), Matrix::transposed(&b, k)];
    for (a, b) in a_forms.iter().flat_map(|a| b_forms.iter().map(move |b| (*a, *b))) {
        let bias = (!accumulate).then_some(bias.as_slice());
        let from = if accumulate { start.clone() } else { vec![0.0; m * n] };
        let want = naive((m, n, k), a, b, &from, bias);
        let mut c = if accumulate { start.clone() } else { vec![f32::NAN; m * n] };
        gemm((m, n, k), a, b, &mut c, n, accumulate, bias).unwrap();
        for (i, (got, want)) in c.iter().zip(&want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error < 1e-5 * (k as f64).sqrt().max(1.0), "{m} {n} {k} at {i}: {got} {want}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let _held = crate::testing::hold_settings();
    let (m, n, k) = (200, 333, 700);
    let (a, b) = (random(m * k, 5), random(n * k, 6));
    let mut results = Vec::new();
    for n_threads in [1, 2, 3] {
        crate::threads::set_n_threads(n_threads);
        let mut c = vec![0.0; m * n];
        let (a, b) = (Matrix::rows(&a, k), Matrix::transposed(&b, k));
        gemm((m, n, k), a, b, &mut c, n, false, None).unwrap();
        results.push(c);
    }
    assert!(results.iter().all(|c| *c == results[0]));
}

#[test]
fn an_empty_inner_dimension_gives_the_bias() {
    let mut c = [7.0; 4];
    let empty = Matrix::rows(&[], 0);
    gemm((2, 2, 0), empty, empty, &mut c, 2, false, Some(&[1.0, 2.0])).unwrap();
    assert_eq!(c, [1.0, 2.0, 1.0, 2.0]);
}
