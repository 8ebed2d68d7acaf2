use crate::testing::Array;

/// `f` of each pair of elements.
pub(super) fn zip(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    Array {
        shape: a.shape.clone(),
        data: a.data.iter().zip(&b.data).map(|(a, b)| f(*a, *b)).collect(),
    }
}

pub(super) fn sum(a: &Array) -> Array {
    Array { shape: vec![1], data: vec![a.data.iter().sum()] }
}
