use crate::testing::Array;

/// `Σᵢ factorᵢ · weightᵢ · xᵢ`: `x` is first the terms, then the weights of those with `true`.
pub(super) fn weighted_sum(x: &[Array], terms: &[(bool, f64)]) -> Array {
    let mut y = Array::zeros(&x[0].shape);
    let mut weights = x[terms.len()..].iter();
    for (x, (has_weight, factor)) in x.iter().zip(terms) {
        let weight = if *has_weight { weights.next().unwrap().data[0] } else { 1.0 };
        for (y, x) in y.data.iter_mut().zip(&x.data) {
            *y += factor * weight * x;
        }
    }
    y
}
