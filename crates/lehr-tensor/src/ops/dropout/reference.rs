use crate::Philox;
use crate::testing::Array;

/// `x / (1 − p)` where `rng.uniform(i) >= p`, else 0.
pub(super) fn dropout(x: &Array, p: f32, rng: &Philox) -> Array {
    let value = |(i, x): (usize, &f64)| {
        if rng.uniform(i as u64) >= p { x / (1.0 - f64::from(p)) } else { 0.0 }
    };
    Array { shape: x.shape.clone(), data: x.data.iter().enumerate().map(value).collect() }
}
