use crate::testing::Array;

/// `y = (x − mean) / √(var + eps) · weight + bias`, row by row.
pub(crate) fn layer_norm(x: &Array, weight: &Array, bias: Option<&Array>, eps: f64) -> Array {
    let d = x.last_dim();
    let mut y = Array::zeros(&x.shape);
    for r in 0..x.n_rows() {
        let row = &x.data[r * d..(r + 1) * d];
        let mean = row.iter().sum::<f64>() / d as f64;
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d as f64;
        for k in 0..d {
            let shift = bias.map_or(0.0, |b| b.data[k]);
            y.data[r * d + k] = (row[k] - mean) / (var + eps).sqrt() * weight.data[k] + shift;
        }
    }
    y
}
