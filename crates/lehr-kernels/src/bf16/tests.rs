use super::*;
use crate::Philox;
use crate::simd::tile16::{available, chosen, set};

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Philox::new(1, stream).fill_uniform(&mut values, 1.0);
    values
}

fn rounded(x: f32) -> f64 {
    f64::from(half::bf16::from_f32(x).to_f32())
}

/// The operands of a product by way of their layouts in memory.
fn operands(
    (m, n, k): (usize, usize, usize),
    a: (&[f32], bool),
    b: (&[f32], bool),
) -> (Panels, Panels) {
    let mut left = Panels::uninit(Side::Left, m, k).unwrap();
    let mut right = Panels::uninit(Side::Right, n, k).unwrap();
    match a {
        (a, false) => pack(a, k, (m, k), Forms { left: Some(&mut left), ..Forms::default() }),
        (a, true) => {
            pack(a, m, (k, m), Forms { left_transposed: Some(&mut left), ..Forms::default() });
        }
    }
    match b {
        (b, false) => pack(b, n, (k, n), Forms { right: Some(&mut right), ..Forms::default() }),
        (b, true) => {
            pack(b, k, (n, k), Forms { right_transposed: Some(&mut right), ..Forms::default() });
        }
    }
    (left, right)
}

#[test]
fn products_of_all_layouts_and_odd_sizes_match_double_precision() {
    let _held = crate::testing::hold_settings();
    let sizes = [1, 2, 15, 16, 17, 31, 32, 33, 47, 65];
    let before = chosen();
    for isa in available() {
        set(isa).unwrap();
        for (t, &m) in sizes.iter().enumerate() {
            for (u, &n) in sizes.iter().enumerate() {
                let k = [1, 2, 31, 32, 33, 64, 300, 513][(t + 3 * u) % 8];
                check((m, n, k), t % 2 == 0);
            }
        }
        check((600, 70, 40), true);
        check((40, 600, 1100), false);
    }
    set(before).unwrap();
}

fn check((m, n, k): (usize, usize, usize), accumulate: bool) {
    let (a, b, start, bias) = (random(m * k, 1), random(k * n, 2), random(m * n, 3), random(n, 4));
    for (at, bt) in [(false, false), (false, true), (true, false), (true, true)] {
        let (left, right) = operands((m, n, k), (&a, at), (&b, bt));
        let bias = (!accumulate).then_some(bias.as_slice());
        let mut c = if accumulate { start.clone() } else { vec![f32::NAN; m * n] };
        product(&left, &right, &mut c, n, accumulate, bias).unwrap();
        for i in 0..m {
            for j in 0..n {
                let mut want = if accumulate { f64::from(start[i * n + j]) } else { 0.0 };
                want += bias.map_or(0.0, |bias| f64::from(bias[j]));
                for p in 0..k {
                    let x = a[if at { p * m + i } else { i * k + p }];
                    let y = b[if bt { j * k + p } else { p * n + j }];
                    want += rounded(x) * rounded(y);
                }
                let got = f64::from(c[i * n + j]);
                let limit = 2e-6 * (k as f64).sqrt().max(1.0);
                assert!((got - want).abs() < limit, "{m} {n} {k} at {i} {j}: {got} {want}");
            }
        }
    }
}

#[test]
fn threads_and_neighbours_change_no_bit() {
    let _held = crate::testing::hold_settings();
    let before = chosen();
    let (m, n, k) = (200, 333, 700);
    let (a, b) = (random(m * k, 5), random(n * k, 6));
    for isa in available() {
        set(isa).unwrap();
        let multiply = |m: usize| {
            let (left, right) = operands((m, n, k), (&a[..m * k], false), (&b, true));
            let mut c = vec![0.0; m * n];
            product(&left, &right, &mut c, n, false, None).unwrap();
            c
        };
        crate::threads::set_n_threads(1);
        let want = multiply(m);
        for n_threads in [2, 3] {
            crate::threads::set_n_threads(n_threads);
            assert!(multiply(m) == want, "{isa}, {n_threads} threads");
        }
        for rows in [1, 5, 16, 31, 100] {
            assert!(multiply(rows) == want[..rows * n], "{isa}, {rows} rows");
        }
    }
    set(before).unwrap();
}

#[test]
fn small_products_match_those_of_panels() {
    let _held = crate::testing::hold_settings();
    struct Small<'a> {
        a: &'a [f32],
        b: &'a [f32],
        c: &'a mut [f32],
    }
    impl crate::simd::Kernel for Small<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: crate::simd::Simd>(self, s: S) {
            let (mut a, mut b) = (vec![9; local_words(64, 96)], vec![9; local_words(32, 96)]);
            let left = LocalForms { left: Some(&mut a), ..LocalForms::default() };
            pack_local(s, self.a, 70, (50, 70), (64, 96), 0.5, left);
            let right = LocalForms { right_transposed: Some(&mut b), ..LocalForms::default() };
            pack_local(s, self.b, 70, (20, 70), (32, 96), 1.0, right);
            let worker = Worker::new(chosen());
            product_local(&worker, (64, 32, 96), &a, &b, self.c, 40, true);
        }
    }
    let before = chosen();
    let (a, b, start) = (random(50 * 70, 11), random(20 * 70, 12), random(64 * 40, 13));
    for isa in available() {
        set(isa).unwrap();
        let mut c = start.clone();
        crate::simd::dispatch(Small { a: &a, b: &b, c: &mut c });
        let half: Vec<f32> = a.iter().map(|x| 0.5 * x).collect();
        let (left, right) = operands((50, 20, 70), (&half, false), (&b, true));
        let mut want = start.clone();
        product(&left, &right, &mut want, 40, true, None).unwrap();
        assert!(c == want, "{isa}");
    }
    set(before).unwrap();
}

/// All four forms of a matrix.
fn all([left, left_transposed, right, right_transposed]: &mut [Panels; 4]) -> Forms<'_> {
    Forms {
        left: Some(left),
        left_transposed: Some(left_transposed),
        right: Some(right),
        right_transposed: Some(right_transposed),
    }
}

#[test]
fn rows_packed_part_by_part_are_those_packed_at_once() {
    let (rows, columns) = (101, 50);
    let source = random(rows * columns, 8);
    let forms = || {
        [(Side::Left, rows), (Side::Left, columns), (Side::Right, columns), (Side::Right, rows)]
            .map(|(side, width)| Panels::uninit(side, width, rows + columns - width).unwrap())
    };
    let (mut whole, mut parts) = (forms(), forms());
    pack(&source, columns, (rows, columns), all(&mut whole));
    for (first, n) in [(0, 32), (32, 64), (96, 5)] {
        let part = &source[first * columns..];
        pack_rows(part, columns, (n, columns), (first, rows), all(&mut parts));
    }
    for (whole, part) in whole.iter().zip(&parts) {
        assert!(whole.data.bytes() == part.data.bytes(), "{:?} {}", whole.side, whole.width);
    }
}

#[test]
fn packing_rounds_like_the_type() {
    let special = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3.4e38, 1e-40];
    let mut values: Vec<f32> = special.to_vec();
    values.extend((0..1000u32).map(|i| f32::from_bits(0x3F80_0000 + i * 0x7FF)));
    values.resize(values.len().next_multiple_of(32), 0.0);
    let mut panels = Panels::uninit(Side::Left, 1, values.len()).unwrap();
    let n = values.len();
    pack(&values, n, (1, n), Forms { left: Some(&mut panels), ..Forms::default() });
    let got: &[half::bf16] = panels.data.as_slice();
    for (i, value) in values.iter().enumerate() {
        let (got, want) = (got[i / STEPS * TILE + i % STEPS], half::bf16::from_f32(*value));
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{value}");
    }
}

#[test]
fn an_empty_sum_gives_the_bias() {
    let (left, right) = operands((2, 2, 0), (&[], false), (&[], false));
    let mut c = [7.0; 4];
    product(&left, &right, &mut c, 2, false, Some(&[1.0, 2.0])).unwrap();
    assert_eq!(c, [1.0, 2.0, 1.0, 2.0]);
    product(&left, &right, &mut c, 2, true, None).unwrap();
    assert_eq!(c, [1.0, 2.0, 1.0, 2.0]);
    assert!(product(&left, &right, &mut c, 2, true, Some(&[1.0, 2.0])).is_err());
}
