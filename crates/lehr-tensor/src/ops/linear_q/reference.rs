use crate::testing::Array;

/// `y[r, o] = Σᵢ x[r, i] w[o, i] + bias[o]` for the numbers `w` that the weight stands for.
pub(crate) fn linear_q(x: &Array, w: &[f32], n_out: usize, bias: Option<&Array>) -> Array {
    let n_in = x.last_dim();
    let mut y = Array::zeros(&x.with_last_dim(n_out));
    for r in 0..x.n_rows() {
        for o in 0..n_out {
            let mut sum = bias.map_or(0.0, |b| b.data[o]);
            for i in 0..n_in {
                sum += x.data[r * n_in + i] * f64::from(w[o * n_in + i]);
            }
            y.data[r * n_out + o] = sum;
        }
    }
    y
}
