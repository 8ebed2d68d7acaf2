use crate::testing::Array;

/// `f` of each pair of elements.
pub(super) fn zip(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    Array {
        shape: a.shape.clone(),
        data: a.data.iter().zip(&b.data).map(|(a, b)| f(*a, *b)).collect(),
    }
}

/// `f` of each element.
pub(super) fn map(a: &Array, f: impl Fn(f64) -> f64) -> Array {
    Array { shape: a.shape.clone(), data: a.data.iter().map(|a| f(*a)).collect() }
}

pub(super) fn sum(a: &Array) -> Array {
    Array { shape: vec![1], data: vec![a.data.iter().sum()] }
}

pub(super) fn mean(a: &Array) -> Array {
    let n = a.data.len() as f64;
    map(&sum(a), |sum| sum / n)
}

/// `y[.., i, j] = Σₖ a[.., i, k] b[.., k, j]`.
pub(super) fn matmul(a: &Array, b: &Array) -> Array {
    let rank = a.shape.len();
    let (m, k, n) = (a.shape[rank - 2], a.shape[rank - 1], b.shape[rank - 1]);
    let mut y = Array::zeros(&a.with_last_dim(n));
    for batch in 0..a.shape[..rank - 2].iter().product() {
        for i in 0..m {
            for j in 0..n {
                y.data[(batch * m + i) * n + j] = (0..k)
                    .map(|k_| a.data[(batch * m + i) * k + k_] * b.data[(batch * k + k_) * n + j])
                    .sum();
            }
        }
    }
    y
}

/// Dimensions `first` and `second` swapped, one element at a time.
pub(super) fn transpose(x: &Array, first: usize, second: usize) -> Array {
    let mut shape = x.shape.clone();
    shape.swap(first, second);
    let mut y = Array::zeros(&shape);
    for to in 0..y.data.len() {
        let mut index = vec![0; shape.len()];
        let mut rest = to;
        for dim in (0..shape.len()).rev() {
            index[dim] = rest % shape[dim];
            rest /= shape[dim];
        }
        index.swap(first, second);
        let from = index.iter().zip(&x.shape).fold(0, |from, (i, extent)| from * extent + i);
        y.data[to] = x.data[from];
    }
    y
}
