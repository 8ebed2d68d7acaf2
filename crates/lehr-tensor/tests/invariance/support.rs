//! Random inputs, subsets of rows, and the settings that all tests of the process share.

use std::sync::{Mutex, PoisonError};

use lehr_tensor::{Isa, Philox, Tensor, available_isas, isa, no_grad, set_isa, threads};

/// Runs `test` once for each instruction set of this processor, outside of recording.
pub(crate) fn on_every_isa(test: impl Fn(Isa)) {
    static HELD: Mutex<()> = Mutex::new(());
    let _held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let (isa_before, threads_before) = (isa(), threads::n_threads());
    for which in available_isas() {
        set_isa(which).unwrap();
        no_grad(|| test(which));
    }
    set_isa(isa_before).unwrap();
    threads::set_n_threads(threads_before);
}

/// Normally distributed numbers.
pub(crate) fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(77, stream).fill_normal(x.data_mut(), 1.0);
    x
}

/// Whole numbers below `n`.
pub(crate) fn below(n: usize, draw: u64) -> usize {
    Philox::new(78, draw).block(0)[0] as usize % n
}

/// The order of `n` things by noise.
pub(crate) fn shuffled(n: usize, draw: u64) -> Vec<usize> {
    let noise = Philox::new(79, draw);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|i| noise.block(*i as u64)[0]);
    order
}

/// Some rows of a matrix, in that order.
pub(crate) fn pick(x: &Tensor, rows: &[usize]) -> Tensor {
    let width = x.shape()[1];
    let data: Vec<f32> =
        rows.iter().flat_map(|r| x.data()[r * width..(r + 1) * width].to_vec()).collect();
    Tensor::from_slice(&data, [rows.len(), width]).unwrap()
}

/// The bits of row `r` of a matrix.
pub(crate) fn bits(x: &[f32], r: usize, width: usize) -> Vec<u32> {
    x[r * width..(r + 1) * width].iter().map(|v| v.to_bits()).collect()
}

/// Asserts that `f`, which maps rows to rows, gives each of the rows `0..n` the same bits in any
/// company: all of them in order, and subsets of every size in `sizes`, shuffled. `f` gets the
/// numbers of the rows.
pub(crate) fn assert_rows_independent(
    what: &str,
    n: usize,
    sizes: impl IntoIterator<Item = usize>,
    f: impl Fn(&[usize]) -> Tensor,
) {
    threads::set_n_threads(1);
    let all: Vec<usize> = (0..n).collect();
    let want = f(&all);
    let width = want.data().len() / n;
    for m in sizes {
        for n_threads in [1, 2, 3] {
            threads::set_n_threads(n_threads);
            let rows = &shuffled(n, (m * 4 + n_threads) as u64)[..m];
            let got = f(rows);
            for (i, &row) in rows.iter().enumerate() {
                let (got, want) = (bits(got.data(), i, width), bits(want.data(), row, width));
                let differs = got.iter().zip(&want).position(|(a, b)| a != b);
                assert!(
                    differs.is_none(),
                    "{what}, {n_threads} threads: row {row} as number {i} of {m} differs from that \
                     among {n} in column {differs:?}"
                );
            }
        }
    }
}

/// All numbers of rows up to 70 on a fast instruction set, those at the edges of kernels on the
/// others.
pub(crate) fn sizes(isa: Isa) -> Vec<usize> {
    if isa == Isa::Scalar || cfg!(debug_assertions) {
        vec![1, 2, 4, 5, 9, 21, 65, 70]
    } else {
        (1..=70).collect()
    }
}
