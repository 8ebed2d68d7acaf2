use super::WeightLayout;
use crate::testing::Array;

/// `y[r, o] = Σᵢ x[r, i] w[o, i] + bias[o]`.
pub(crate) fn linear(x: &Array, w: &Array, layout: WeightLayout, bias: Option<&Array>) -> Array {
    let n_in = x.last_dim();
    let n_out = match layout {
        WeightLayout::OutIn => w.shape[0],
        WeightLayout::InOut => w.shape[1],
    };
    let mut y = Array::zeros(&x.with_last_dim(n_out));
    for r in 0..x.n_rows() {
        for o in 0..n_out {
            let mut sum = bias.map_or(0.0, |b| b.data[o]);
            for i in 0..n_in {
                let weight = match layout {
                    WeightLayout::OutIn => w.data[o * n_in + i],
                    WeightLayout::InOut => w.data[i * n_out + o],
                };
                sum += x.data[r * n_in + i] * weight;
            }
            y.data[r * n_out + o] = sum;
        }
    }
    y
}
