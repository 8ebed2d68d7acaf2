use crate::testing::Array;

/// `y = x / √(mean(x²) + eps) · (weight + offset)`, row by row.
pub(crate) fn rms_norm(x: &Array, weight: &Array, eps: f64, offset: f64) -> Array {
    let d = x.last_dim();
    let mut y = Array::zeros(&x.shape);
    for r in 0..x.n_rows() {
        let row = &x.data[r * d..(r + 1) * d];
        let mean = row.iter().map(|v| v * v).sum::<f64>() / d as f64;
        for k in 0..d {
            y.data[r * d + k] = row[k] / (mean + eps).sqrt() * (weight.data[k] + offset);
        }
    }
    y
}
