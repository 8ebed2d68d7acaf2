use crate::testing::Array;

/// Rotates dimensions `2i` and `2i + 1`, or `i` and `i + half`, of the part of each head that
/// starts at `offset` by `positions[token] · inv_freq[i]`, in place.
pub(super) fn rotate(
    x: &mut Array,
    positions: &[i32],
    inv_freq: &[f64],
    adjacent: bool,
    amplitude: f64,
    offset: usize,
) {
    let (width, half) = (x.last_dim(), inv_freq.len());
    let n_heads = x.shape[x.shape.len() - 2];
    for (token, position) in positions.iter().enumerate() {
        for head in 0..n_heads {
            let start = (token * n_heads + head) * width + offset;
            for (i, frequency) in inv_freq.iter().enumerate() {
                let (first, second) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (a, b) = (x.data[start + first], x.data[start + second]);
                let angle = f64::from(*position) * frequency;
                x.data[start + first] = amplitude * (a * angle.cos() - b * angle.sin());
                x.data[start + second] = amplitude * (b * angle.cos() + a * angle.sin());
            }
        }
    }
}

/// `theta^(−2i/n)` for `i` in `0..n/2`.
pub(super) fn inverse_frequencies(theta: f64, n: usize) -> Vec<f64> {
    (0..n / 2).map(|i| theta.powf(-2.0 * i as f64 / n as f64)).collect()
}

/// Each frequency, divided by `factor` to the degree that it turns less often than
/// `high_freq_factor` times within the original context, fully at `low_freq_factor` times.
pub(super) fn llama3_scaled(
    inv_freq: &[f64],
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max_positions: f64,
) -> Vec<f64> {
    let scale = |w: &f64| {
        let turns = original_max_positions * w / std::f64::consts::TAU;
        let keep =
            ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        (1.0 - keep) * w / factor + keep * w
    };
    inv_freq.iter().map(scale).collect()
}
