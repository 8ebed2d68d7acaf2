use crate::testing::Array;

/// `e^x / Σ e^x` along the last dimension.
pub(super) fn softmax(x: &Array) -> Array {
    let mut y = x.clone();
    if x.data.is_empty() {
        return y;
    }
    for row in y.data.chunks_mut(x.last_dim()) {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    y
}
