use crate::testing::Array;

/// `x + factor · scale · σ(logits) · other`, row by row.
pub(super) fn add_gated(
    x: &Array,
    other: &Array,
    logits: &Array,
    scale: f64,
    factor: f64,
) -> Array {
    let d = x.last_dim();
    let mut y = x.clone();
    for (i, y) in y.data.iter_mut().enumerate() {
        let gate = 1.0 / (1.0 + (-logits.data[i / d]).exp());
        *y += factor * scale * gate * other.data[i];
    }
    y
}
